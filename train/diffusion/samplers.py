"""Samplers as pure functions ``sampler(denoise, x_init, log_snrs, noise) -> x_0``, and the per-sample noise they use.

``denoise(x, log_snr_B) -> x_0`` is a denoiser (see guidance.py); ``log_snrs`` (steps + 1,) ascends from noise to clean;
``noise(step) -> (B, C, H, W)`` gives the standard normal noise of a step and is not called by deterministic samplers.
Each sampler evaluates the denoiser ``steps`` times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from train.diffusion.guidance import Denoiser
from train.diffusion.schedules import alpha_sigma, eps_from_x0

Noise = Callable[[int], Tensor]
SamplerName = Literal["ddpm", "ddim", "dpmpp_2m"]
Sampler = Callable[[Denoiser, Tensor, Tensor, Noise], Tensor]

MASK64 = (1 << 64) - 1


def sampling_log_snrs(log_snr: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Log-SNRs (steps + 1,) at times evenly spaced from 1 down to 0; ValueError where ``steps`` < 1."""
    if steps < 1:
        raise ValueError(f"steps {steps} is too few; take 1 or more")
    return log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def ddpm(denoise: Denoiser, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """Ancestral sampling with the posterior's variance (Ho et al. 2020, equation 7, in continuous time)."""
    steps = len(log_snrs) - 1
    for step in range(steps):
        now, then = _at(log_snrs, step, x_BCHW), _at(log_snrs, step + 1, x_BCHW)
        x0_BCHW = denoise(x_BCHW, now)
        if step == steps - 1:
            return x0_BCHW
        alpha, _ = alpha_sigma(now)
        alpha_then, sigma_then = alpha_sigma(then)
        ratio = -torch.expm1(now - then).view(-1, 1, 1, 1)  # 1 - SNR(now) / SNR(then), the share that is resampled
        mean = (1 - ratio) * alpha_then / alpha * x_BCHW + ratio * alpha_then * x0_BCHW
        x_BCHW = mean + sigma_then * ratio.sqrt() * noise(step)
    return x_BCHW


def ddim(denoise: Denoiser, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """The deterministic first-order sampler (Song et al. 2021, equation 12 at eta = 0)."""
    for step in range(len(log_snrs) - 1):
        now, then = _at(log_snrs, step, x_BCHW), _at(log_snrs, step + 1, x_BCHW)
        x0_BCHW = denoise(x_BCHW, now)
        if step == len(log_snrs) - 2:
            return x0_BCHW
        alpha, sigma = alpha_sigma(then)
        x_BCHW = alpha * x0_BCHW + sigma * eps_from_x0(x0_BCHW, x_BCHW, now)
    return x_BCHW


def dpmpp_2m(denoise: Denoiser, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """DPM-Solver++(2M), second-order multistep (Lu et al. 2022, algorithm 2), first-order at first and last."""
    before: Tensor | None = None
    last = len(log_snrs) - 2
    for step in range(last + 1):
        now, then = _at(log_snrs, step, x_BCHW), _at(log_snrs, step + 1, x_BCHW)
        x0_BCHW = denoise(x_BCHW, now)
        if step == last:
            return x0_BCHW
        alpha_then, sigma_then = alpha_sigma(then)
        _, sigma = alpha_sigma(now)
        h = (log_snrs[step + 1] - log_snrs[step]) / 2  # the paper's lambda is half of log-SNR
        direction = x0_BCHW
        if before is not None:
            r = (log_snrs[step] - log_snrs[step - 1]) / 2 / h
            direction = x0_BCHW + (x0_BCHW - before) / (2 * r)
        x_BCHW = sigma_then / sigma * x_BCHW - alpha_then * torch.expm1(-h) * direction
        before = x0_BCHW
    return x_BCHW


SAMPLERS: dict[SamplerName, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}


def sampler_named(name: SamplerName) -> Sampler:
    """The sampler of that name; ValueError for an unknown one."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; take one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


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


def _at(log_snrs: Tensor, step: int, x_BCHW: Tensor) -> Tensor:
    return log_snrs[step].to(x_BCHW.device).expand(x_BCHW.shape[0])
