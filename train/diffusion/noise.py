"""Noise that is a function of the sample, not of the batch it is in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1


def noise_seed(*parts: int) -> int:
    """One 63-bit seed out of several whole numbers, order counted (the finaliser of SplitMix64, chained)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & MASK64)) * 0xBF58476D1CE4E5B9 & MASK64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK64
        state = state ^ (state >> 31)
    return state >> 1


def sample_noise(seeds: Sequence[Sequence[int]], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (B, *shape), row i a function of the numbers ``seeds[i]`` alone, whatever the batch.

    Drawn on the CPU, so that a GPU gets the same noise.
    """
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(noise_seed(*seed))) for seed in seeds]
    return torch.stack(rows).to(device)
