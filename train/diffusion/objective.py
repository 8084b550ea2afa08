"""The training loss of a diffusion stage, and noise conditioning augmentation of its low-resolution input.

Pure functions: the network, the noise and the times are arguments. Images are (B, C, H, W), float, clean in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dataprep.schema import Config
from train.diffusion.schedules import (
    Prediction,
    ScheduleName,
    add_noise,
    log_snr_at,
    log_snr_slope,
    target_of,
    x0_from,
)

# (noisy image, log-SNR (B,)) -> the network's prediction; caption and low-resolution input are bound by the caller.
Model = Callable[[Tensor, Tensor], Tensor]
Weighting = Literal["plain", "min_snr", "sigmoid"]


class DiffusionConfig(Config):
    """How one stage diffuses: what training and sampling must agree on, and the loss weighting."""

    schedule: ScheduleName = Field(default="cosine", description="log-SNR over time")
    log_snr_shift: float = Field(default=0.0, ge=-10, le=10, description="added to log-SNR; > 0: less noise")
    prediction: Prediction = Field(default="v", description="what the network predicts")
    weighting: Weighting = Field(default="plain", description="loss weight over the noise level")
    min_snr_gamma: float = Field(default=5.0, gt=0, description="cap of the SNR weight on x0 (Hang et al. 2023)")
    sigmoid_bias: float = Field(default=0.0, description="log-SNR where the sigmoid weight is one half")
    lowres_schedule: ScheduleName = Field(default="cosine", description="noise level -> log-SNR of the augmentation")
    lowres_max_level: float = Field(default=1.0, ge=0, le=1, description="largest augmentation level in training")

    def log_snr(self, t_B: Tensor) -> Tensor:
        """Log-SNR (B,) at times in [0, 1]."""
        return log_snr_at(t_B, self.schedule, self.log_snr_shift)

    def lowres_log_snr(self, level_B: Tensor) -> Tensor:
        """Log-SNR (B,) of the low-resolution input at augmentation levels in [0, 1]; 0 is clean."""
        return log_snr_at(level_B, self.lowres_schedule)


def loss_weight(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Weight (B,) of the squared error *of the network's own output* at each noise level.

    plain: 1. min_snr: min(SNR, gamma) on the error of x_0 (Hang et al. 2023), rewritten for the prediction in use.
    sigmoid: sigmoid(bias - log_snr) on the error of eps, rewritten likewise, times -d log_snr/dt, so that it is the
    weight over log-SNR whatever the schedule (Kingma and Gao 2023; Hoogeboom et al. 2024).
    """
    if config.weighting == "plain":
        return torch.ones_like(log_snr_B)
    snr_B = log_snr_B.exp()
    if config.weighting == "min_snr":
        x0_weight_B = snr_B.clamp(max=config.min_snr_gamma)
    else:
        slope_B = log_snr_slope(log_snr_B, config.schedule, config.log_snr_shift)
        x0_weight_B = slope_B * snr_B * torch.sigmoid(config.sigmoid_bias - log_snr_B)
    # |error of x_0|^2 = |error of eps|^2 / SNR = |error of v|^2 / (SNR + 1).
    factors = {"x0": torch.ones_like(snr_B), "eps": 1 / snr_B, "v": 1 / (snr_B + 1)}
    return x0_weight_B * factors[config.prediction]


def loss(
    model: Model, x0_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Weighted squared error a sample (B,), and the clean image that the network saw, (B, C, H, W), detached.

    ``t_B`` in [0, 1] and ``noise_BCHW`` ~ N(0, 1) come from the caller, so that they can be a function of the sample.
    """
    log_snr_B = config.log_snr(t_B)
    x_BCHW = add_noise(x0_BCHW, noise_BCHW, log_snr_B)
    output_BCHW = model(x_BCHW, log_snr_B)
    target_BCHW = target_of(config.prediction, x0_BCHW, noise_BCHW, log_snr_B)
    error_B = (output_BCHW.float() - target_BCHW).square().mean(dim=(1, 2, 3))
    x0_hat_BCHW = x0_from(config.prediction, output_BCHW.detach().float(), x_BCHW, log_snr_B)
    return error_B * loss_weight(log_snr_B, config), x0_hat_BCHW


def augment_lowres(
    lowres_BCHW: Tensor, level_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Noise conditioning augmentation (section 2.4): the noised low-resolution input and its log-SNR (B,)."""
    log_snr_B = config.lowres_log_snr(level_B)
    return add_noise(lowres_BCHW, noise_BCHW, log_snr_B), log_snr_B


def upsample(lowres_BCHW: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resizes a low-resolution image to the size of the stage, bilinear, as training and sampling must both do it."""
    target = (size, size) if isinstance(size, int) else size
    return functional.interpolate(lowres_BCHW, size=target, mode="bilinear", align_corners=False)


def to_model_range(pixels_BHWC: Tensor) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in [-1, 1]."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x_BCHW: Tensor) -> Tensor:
    """float (B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C), rounded and clipped."""
    return ((x_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
