"""Inpainting with any denoiser: RePaint (Lugmayr et al. 2022, algorithm 1).

Shapes, ``denoise``, ``log_snrs`` and ``noise`` are as in samplers.py.
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from train.diffusion.guidance import PredictX0
from train.diffusion.samplers import Noise, log_snr_of_step, posterior_mean_std
from train.diffusion.schedules import add_noise, alpha_sigma


def add_forward_noise(x_BCHW: Tensor, now: Tensor, then: Tensor, noise_BCHW: Tensor) -> Tensor:
    """Samples the forward process q(x_then | x_now) at log-SNRs (B,); ``then`` is the noisier one."""
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
    kept = alpha_then / alpha
    return kept * x_BCHW + (sigma_then**2 - (kept * sigma) ** 2).clamp(min=0).sqrt() * noise_BCHW


def repaint(
    denoise: PredictX0,
    x_BCHW: Tensor,
    log_snrs: Tensor,
    noise: Noise,
    known_BCHW: Tensor,
    hidden_B1HW: Tensor,
    resample: int,
) -> Tensor:
    """Samples ancestrally where the mask ``hidden_B1HW`` is True; elsewhere the result equals ``known_BCHW``.

    Takes every step ``resample`` times, with a forward step between, so that the generated part becomes consistent with
    the known one. Evaluates the denoiser (steps - 1) * resample + 1 times. Raises ValueError for ``resample`` < 1.
    """
    if resample < 1:
        raise ValueError(f"resample {resample} is too few; take 1 or more")
    numbers, last = count(), len(log_snrs) - 2
    for step in range(last):
        now, then = log_snr_of_step(log_snrs, step, x_BCHW), log_snr_of_step(log_snrs, step + 1, x_BCHW)
        for repeat in range(resample):
            if repeat:
                x_BCHW = add_forward_noise(x_BCHW, then, now, noise(next(numbers)))
            mean, deviation = posterior_mean_std(x_BCHW, denoise(x_BCHW, now), now, then)
            generated_BCHW = mean + deviation * noise(next(numbers))
            x_BCHW = torch.where(hidden_B1HW, generated_BCHW, add_noise(known_BCHW, noise(next(numbers)), then))
    return torch.where(hidden_B1HW, denoise(x_BCHW, log_snr_of_step(log_snrs, last, x_BCHW)), known_BCHW)
