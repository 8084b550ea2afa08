"""Random numbers on any device as a function of (key, index, place) alone: no generator, no state, no copy.

A counter-based generator in plain tensor operations. A sample's index is hashed into the start of its own sequence, to
which the key is added, and the i-th number of the sequence is the hash of ``start + i * GAMMA``, as in SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Integers give the same bits on
every device; logarithm and cosine may differ by rounding. Shape legend: B batch, N numbers per sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Of SplitMix64, as signed 64-bit integers; products wrap around.
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST, SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
LOW_WORD = (1 << 32) - 1


def counter_normal(key: int, start_B: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns standard normal float32 (B, *shape), on the device of ``start_B``, by Box and Muller's method.

    The largest magnitude is 6.8.
    """
    count = math.prod(shape)
    bits_BN = _random_bits(key, start_B, -(-count // 2))
    radius_BN = ((bits_BN & LOW_WORD) * 2.0**-32).add_(2.0**-33).log_().mul_(-2).sqrt_()
    angle_BN = (bits_BN >> 32) * (2 * math.pi * 2.0**-32)  # signed: from -pi to pi
    del bits_BN
    both_BN = torch.cat([angle_BN.cos().mul_(radius_BN), angle_BN.sin_().mul_(radius_BN)], dim=1)
    return both_BN[:, :count].reshape(len(start_B), *shape)


def counter_uniform(key: int, start_B: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns uniform float32 in [0, 1), multiples of 2^-24, (B, *shape), on the device of ``start_B``."""
    bits_BN = _random_bits(key, start_B, math.prod(shape))
    return ((bits_BN >> 40) * 2.0**-24).add_(0.5).reshape(len(start_B), *shape)


def counter_starts(index_B: Tensor) -> Tensor:
    """Returns where the sequences of samples start, int64 (B,), for any key."""
    return _mix(index_B * GAMMA)


def _random_bits(key: int, start_B: Tensor, count: int) -> Tensor:
    """Returns int64 (B, count) of which every bit is random; ``key`` has up to 63 bits."""
    steps_N = torch.arange(1, count + 1, device=start_B.device).mul_(GAMMA)
    return _mix((start_B + key)[:, None] + steps_N)


def _mix(x: Tensor) -> Tensor:
    """Hashes 64-bit integers in place, one to one (the finaliser of SplitMix64)."""
    x ^= _shift_right(x, 30)
    x *= FIRST
    x ^= _shift_right(x, 27)
    x *= SECOND
    x ^= _shift_right(x, 31)
    return x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts without the sign, which torch's own shift keeps."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
