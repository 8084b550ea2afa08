"""Gaussian noise and data with known denoisers, for tests of diffusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from train.diffusion.guidance import PredictX0
from train.diffusion.schedules import alpha_sigma, log_snr_at


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Returns standard normal noise from a generator of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_noise(*shape: int) -> Callable[[int], Tensor]:
    """Returns the noise of each step, for samplers."""
    return lambda step: normal(*shape, seed=100 + step)


def cosine(t: Tensor) -> Tensor:
    """The cosine schedule."""
    return log_snr_at(t, "cosine")


def exact_denoiser(mean: float, std: float) -> PredictX0:
    """Returns the exact denoiser of data ~ N(mean, std^2)."""

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(at)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    return denoise
