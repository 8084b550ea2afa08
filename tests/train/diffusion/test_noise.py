"""Noise per sample."""

from __future__ import annotations

import torch

from train.diffusion.noise import noise_seed, sample_noise


def test_noise_is_a_function_of_the_sample() -> None:
    seeds = [(1, sample, 0) for sample in range(4)]
    together = sample_noise(seeds, (3, 4, 4))
    assert torch.equal(together[2:3], sample_noise(seeds[2:3], (3, 4, 4)))
    assert len({noise_seed(a, b) for a in range(50) for b in range(50)}) == 2500
    assert noise_seed(1, 2) != noise_seed(2, 1) and 0 <= noise_seed(2**64 - 1, -1) < 2**63
