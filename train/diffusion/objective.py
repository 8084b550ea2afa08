"""Training loss of a diffusion stage, and noise conditioning augmentation of its low-resolution input.

Pure functions: network, noise and times are arguments. Images are (B, C, H, W), float; clean images lie in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from train.diffusion.config import DiffusionConfig
from train.diffusion.schedules import add_noise, alpha_sigma, log_snr_at, prediction_target, x0_from_output
from train.diffusion.weighting import loss_weight

# (noisy image, log-SNR (B,)) -> output of the network; the caller binds caption and low-resolution input.
PredictOutput = Callable[[Tensor, Tensor], Tensor]


def log_snr_at_time(config: DiffusionConfig, t_B: Tensor) -> Tensor:
    """Returns log-SNR (B,) at times in [0, 1]; 0 is clean, 1 is noise."""
    return log_snr_at(t_B, config.schedule, config.log_snr_shift)


def log_snr_at_level(config: DiffusionConfig, level_B: Tensor) -> Tensor:
    """Returns log-SNR (B,) of the low-resolution input at augmentation levels in [0, 1]; 0 is clean."""
    return log_snr_at(level_B, config.lowres_schedule)


class NoisedImages(NamedTuple):
    """Noised images, and what their loss needs."""

    x0_BCHW: Tensor  # clean
    x_BCHW: Tensor  # noised
    target_BCHW: Tensor  # of the network
    log_snr_B: Tensor
    weight_B: Tensor  # of the squared error of the network's output
    scales: tuple[Tensor, Tensor]  # `alpha_sigma`


def noise_images(x0_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig) -> NoisedImages:
    """Noises images to times ``t_B`` in [0, 1] with ``noise_BCHW`` ~ N(0, 1); both can be functions of the sample."""
    log_snr_B = log_snr_at_time(config, t_B)
    scales = alpha_sigma(log_snr_B)
    x_BCHW = add_noise(x0_BCHW, noise_BCHW, log_snr_B, scales)
    target_BCHW = prediction_target(config.prediction, x0_BCHW, noise_BCHW, log_snr_B, scales)
    return NoisedImages(x0_BCHW, x_BCHW, target_BCHW, log_snr_B, loss_weight(log_snr_B, config), scales)


def denoising_loss(predict: PredictOutput, noised: NoisedImages, config: DiffusionConfig) -> tuple[Tensor, Tensor]:
    """Returns the weighted squared error per sample (B,), and the predicted clean image (B, C, H, W), detached."""
    output_BCHW = predict(noised.x_BCHW, noised.log_snr_B)
    error_B = (output_BCHW.float() - noised.target_BCHW).square().mean(dim=(1, 2, 3))
    clean = output_BCHW.detach().float()
    x0_hat_BCHW = x0_from_output(config.prediction, clean, noised.x_BCHW, noised.log_snr_B, noised.scales)
    return error_B * noised.weight_B, x0_hat_BCHW


def diffusion_loss(
    predict: PredictOutput, x0_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Returns `denoising_loss` of `noise_images`."""
    return denoising_loss(predict, noise_images(x0_BCHW, t_B, noise_BCHW, config), config)


def augment_lowres(
    lowres_BCHW: Tensor, level_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Applies noise conditioning augmentation (section 2.4): the noised low-resolution input and its log-SNR (B,)."""
    log_snr_B = log_snr_at_level(config, level_B)
    return add_noise(lowres_BCHW, noise_BCHW, log_snr_B), log_snr_B


def upsample_lowres(lowres_BCHW: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resizes a low-resolution image to (height, width) ``size``, bilinear; shared by training and sampling."""
    target = (size, size) if isinstance(size, int) else size
    return functional.interpolate(lowres_BCHW, size=target, mode="bilinear", align_corners=False)


def to_model_range(pixels_BHWC: Tensor) -> Tensor:
    """Converts uint8 (B, H, W, C) to float32 (B, C, H, W) in [-1, 1]."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x_BCHW: Tensor) -> Tensor:
    """Converts float (B, C, H, W) in [-1, 1] to uint8 (B, H, W, C), rounded and clipped."""
    return ((x_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
