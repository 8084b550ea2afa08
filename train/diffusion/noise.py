"""Noise as a function of the sample, independent of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1


def noise_seed(*parts: int) -> int:
    """Hashes integers, in order, into one 63-bit seed (finaliser of SplitMix64, chained)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & MASK64)) * 0xBF58476D1CE4E5B9 & MASK64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK64
        state = state ^ (state >> 31)
    return state >> 1


def sample_noise(seeds: Sequence[Sequence[int]], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Returns standard normal noise (B, *shape), float32; row i depends on the integers ``seeds[i]`` alone.

    Generated on the device, with which it differs: the host would take as long as the network, and then wait for the
    copy. All GPUs have one generator, all CPUs another.
    """
    noise = torch.empty((len(seeds), *shape), device=device)
    generator = torch.Generator(noise.device)
    for row, seed in zip(noise, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(noise_seed(*seed)))
    return noise
