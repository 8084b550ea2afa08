"""Drawing the hidden part of a known image with any denoiser: RePaint (Lugmayr et al. 2022, algorithm 1).

Shapes, ``denoise``, ``log_snrs`` and ``noise`` are as in samplers.py.
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from train.diffusion.guidance import Denoiser
from train.diffusion.samplers import Noise, level, posterior
from train.diffusion.schedules import add_noise, alpha_sigma


def noisier(x_BCHW: Tensor, now: Tensor, then: Tensor, noise_BCHW: Tensor) -> Tensor:
    """A step of the forward process, q(x_then | x_now), at log-SNRs (B,), ``then`` the noisier."""
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
    kept = alpha_then / alpha
    return kept * x_BCHW + (sigma_then**2 - (kept * sigma) ** 2).clamp(min=0).sqrt() * noise_BCHW


def repaint(
    denoise: Denoiser,
    x_BCHW: Tensor,
    log_snrs: Tensor,
    noise: Noise,
    known_BCHW: Tensor,
    hidden_B1HW: Tensor,
    resample: int,
) -> Tensor:
    """Ancestral sampling where ``hidden_B1HW`` is True; elsewhere the result is ``known_BCHW`` itself.

    Every step is taken ``resample`` times with a step back to more noise between, so that what is drawn can agree with
    what is known. It evaluates the denoiser (steps - 1) * resample + 1 times. ValueError where ``resample`` < 1.
    """
    if resample < 1:
        raise ValueError(f"resample {resample} is too few; take 1 or more")
    draws, last = count(), len(log_snrs) - 2
    for step in range(last):
        now, then = level(log_snrs, step, x_BCHW), level(log_snrs, step + 1, x_BCHW)
        for turn in range(resample):
            if turn:
                x_BCHW = noisier(x_BCHW, then, now, noise(next(draws)))
            mean, deviation = posterior(x_BCHW, denoise(x_BCHW, now), now, then)
            drawn_BCHW = mean + deviation * noise(next(draws))
            x_BCHW = torch.where(hidden_B1HW, drawn_BCHW, add_noise(known_BCHW, noise(next(draws)), then))
    return torch.where(hidden_B1HW, denoise(x_BCHW, level(log_snrs, last, x_BCHW)), known_BCHW)
