"""The learned variance of a sampler's steps: the bound of a discrete chain that trains it (Nichol and Dhariwal 2021).

Images are (B, C, H, W), float; results are in nats per dimension, (B,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from train.diffusion.samplers import learned_std
from train.diffusion.schedules import alpha_sigma, log_snr_at

if TYPE_CHECKING:
    from train.diffusion.config import DiffusionConfig


class ChainStep(NamedTuple):
    """A step of the chain of each image."""

    log_snr_B: Tensor  # after it, higher than before
    counts_B: Tensor  # 1.0; 0.0 for the last one, to the clean image, whose variance no sampler draws from


def chain_length(config: DiffusionConfig) -> int:
    """Returns the number of steps of the chain: those of a discrete schedule, else ``variance_steps``."""
    return config.betas.steps if config.schedule == "discrete" else config.variance_steps


def chain_step(config: DiffusionConfig, t_B: Tensor, log_snr_B: Tensor) -> ChainStep:
    """Returns the step that begins at times ``t_B`` in [0, 1], whose log-SNR is given."""
    length = 1 / (config.betas.steps - 1) if config.schedule == "discrete" else 1 / config.variance_steps
    then_B = log_snr_at(t_B.double() - length, config.schedule, config.log_snr_shift, config.betas)
    counts_B = (t_B >= length * (1 - 1e-4)) & (then_B > log_snr_B)  # not where both are clamped
    return ChainStep(torch.where(counts_B, then_B, log_snr_B + 1), counts_B.to(log_snr_B.dtype))


def chain_nats(
    x0_BCHW: Tensor, x0_hat_BCHW: Tensor, variance_BCHW: Tensor, log_snr_B: Tensor, then_B: Tensor
) -> Tensor:
    """Returns KL(q(x_then | x_now, x_0) || p(x_then | x_now)), L_t of Ho et al. 2020, equation 5.

    Both are normal: q as in `train.diffusion.samplers.posterior_mean_std`, p with the mean of the predicted clean image
    and the variance `train.diffusion.samplers.learned_std`. Gradients reach the variance alone (Nichol and Dhariwal
    2021, 3.1: the mean is left to the plain loss).
    """
    ratio = -(log_snr_B - then_B).expm1().view(-1, 1, 1, 1)  # the resampled share of the noise
    alpha_then, sigma_then = alpha_sigma(then_B)
    away_BCHW = ratio * alpha_then * (x0_BCHW - x0_hat_BCHW.detach())  # between the means
    deviation, learned_BCHW = sigma_then * ratio.sqrt(), learned_std(variance_BCHW, log_snr_B, then_B)
    nats_BCHW = (learned_BCHW / deviation).log() - 0.5
    nats_BCHW = nats_BCHW + ((deviation / learned_BCHW).square() + (away_BCHW / learned_BCHW).square()) / 2
    return nats_BCHW.mean(dim=(1, 2, 3))


def variance_loss(
    x0_BCHW: Tensor, x0_hat_BCHW: Tensor, variance_BCHW: Tensor, log_snr_B: Tensor, step: ChainStep, length: int
) -> Tensor:
    """Returns a sample of L_vlb, the sum of `chain_nats` over the ``length`` steps of the chain, but for the last."""
    return length * step.counts_B * chain_nats(x0_BCHW, x0_hat_BCHW, variance_BCHW, log_snr_B, step.log_snr_B)
