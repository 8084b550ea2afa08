"""Training loss and noise levels of a diffusion stage, noise conditioning augmentation of its low-resolution input.

Pure functions: network, noise and times are arguments. Images are (B, C, H, W), float; clean images lie in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional

from dataprep.io.errors import UserError
from train.beta_schedule import OwnSpacing, own_steps
from train.diffusion.config import DiffusionConfig, Spacing, StepSpacing
from train.diffusion.learned_variance import ChainStep, chain_length, chain_step, variance_loss
from train.diffusion.likelihood import bound_levels, prior_nats, reconstruction_nats
from train.diffusion.losses import LOSSES
from train.diffusion.samplers import sampling_log_snrs
from train.diffusion.schedules import (
    LOG_SNR_LIMIT,
    add_noise,
    alpha_sigma,
    log_snr_at,
    network_input,
    prediction_target,
    split_variance,
    x0_from_output,
)
from train.diffusion.times import draw_times
from train.diffusion.weighting import loss_weight

# (noisy image, log-SNR (B,)) -> output of the network; the caller binds caption and low-resolution input.
PredictOutput = Callable[[Tensor, Tensor], Tensor]
# (predicted clean image, clean image, log-SNR (B,)) -> loss (B,) beside that of the output
ImageLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def log_snr_at_time(config: DiffusionConfig, t_B: Tensor) -> Tensor:
    """Returns log-SNR (B,) at times in [0, 1]; 0 is clean, 1 is noise."""
    return log_snr_at(t_B, config.schedule, config.log_snr_shift, config.betas)


def training_time(config: DiffusionConfig, t_B: Tensor) -> Tensor:
    """Returns the times (B,) to train at: ``t_B`` in [0, 1); for the discrete schedule those of whole steps.

    Every step gets an equal share of [0, 1).
    """
    if config.schedule != "discrete":
        return t_B
    steps = config.betas.steps
    return (t_B.double() * steps).floor().clamp(max=steps - 1) / (steps - 1)


def log_snr_at_level(config: DiffusionConfig, level_B: Tensor) -> Tensor:
    """Returns log-SNR (B,) of the low-resolution input at augmentation levels in [0, 1]; 0 is clean.

    Levels of the discrete schedule are rounded to whole steps.
    """
    if config.lowres_schedule == "discrete":
        last = config.lowres_betas.steps - 1
        level_B = (level_B.double() * last).round() / last
    return log_snr_at(level_B, config.lowres_schedule, betas=config.lowres_betas)


def evaluation_log_snrs(
    config: DiffusionConfig,
    steps: int,
    spacing: StepSpacing = "time",
    start: float = 1.0,
    timesteps: Sequence[int] | None = None,
    log_snrs: Sequence[float] | None = None,
) -> Tensor:
    """Returns the noise levels of a sampler, float32: those of its evaluations, rising, and the clean end.

    Takes ``steps`` from pure noise, and of these the last share ``start`` (SDEdit). ``spacing`` leading or linspace
    takes steps of the discrete process itself, and so do ``timesteps``, its steps by number, which replace ``steps``
    and ``spacing``, as ``log_snrs`` do, levels by value. Raises UserError for these without a discrete schedule, and
    for steps that it does not have.
    """
    if log_snrs is not None:
        given = torch.tensor(log_snrs[-max(1, round(len(log_snrs) * start)) :])
        return torch.cat([given, torch.tensor([LOG_SNR_LIMIT])])
    if timesteps is None and spacing not in get_args(OwnSpacing):
        at_time, taken = partial(log_snr_at_time, config), max(1, round(steps * start))
        return sampling_log_snrs(at_time, taken, cast(Spacing, spacing), start)
    if config.schedule != "discrete":
        what = f"spacing {spacing}" if timesteps is None else "timesteps"
        raise UserError(f"{what}: needs a model of schedule discrete, this one has {config.schedule}; leave it out")
    count = config.betas.steps
    if timesteps is not None and (beyond := [step for step in timesteps if step >= count]):
        raise UserError(f"timesteps {beyond[0]}: the model has steps 0 to {count - 1}; leave it out")
    if timesteps is None and steps > count:
        raise UserError(f"steps {steps}: spacing {spacing} takes the model's own {count} steps; take at most {count}")
    chosen = timesteps if timesteps is not None else own_steps(count, steps, cast(OwnSpacing, spacing))
    chosen = chosen[-max(1, round(len(chosen) * start)) :]
    levels = log_snr_at_time(config, torch.tensor(chosen, dtype=torch.float64) / (count - 1))
    return torch.cat([levels, torch.tensor([LOG_SNR_LIMIT])])


class NoisedImages(NamedTuple):
    """Noised images, and what their loss needs."""

    x0_BCHW: Tensor  # clean
    x_BCHW: Tensor  # noised
    target_BCHW: Tensor  # of the network
    log_snr_B: Tensor
    weight_B: Tensor  # of the squared error of the network's output
    scales: tuple[Tensor, Tensor]  # `alpha_sigma`
    step: ChainStep | None = None  # at which the variance is trained; None: it is not


def noise_images(x0_BCHW: Tensor, u_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig) -> NoisedImages:
    """Noises images with ``noise_BCHW`` ~ N(0, 1) to times drawn by ``u_B``, uniform in [0, 1).

    Both can be functions of the sample. The noise rises with ``u_B``.
    """
    t_B = training_time(config, draw_times(u_B, config))
    log_snr_B = log_snr_at_time(config, t_B)
    scales = alpha_sigma(log_snr_B)
    x_BCHW = add_noise(x0_BCHW, noise_BCHW, log_snr_B, scales)
    target_BCHW = prediction_target(config.prediction, x0_BCHW, noise_BCHW, log_snr_B, scales)
    step = chain_step(config, t_B, log_snr_B) if config.variance_weight else None
    return NoisedImages(x0_BCHW, x_BCHW, target_BCHW, log_snr_B, loss_weight(log_snr_B, config), scales, step)


def denoising_loss(
    predict: PredictOutput, noised: NoisedImages, config: DiffusionConfig, image_loss: ImageLoss | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the weighted loss per sample (B,), and the predicted clean image (B, C, H, W).

    With ``variance_weight`` that is L_hybrid (Nichol and Dhariwal 2021, equation 16); without it a variance that the
    network learned before stays as it is.
    """
    seen_BCHW = network_input(noised.x_BCHW, noised.log_snr_B, config.schedule, noised.scales)
    output_BCHW, variance_BCHW = split_variance(predict(seen_BCHW, noised.log_snr_B), noised.x_BCHW)
    loss_B = LOSSES[config.loss](output_BCHW.float() - noised.target_BCHW, noised.weight_B, config)
    output_BCHW = output_BCHW.float()
    x0_hat_BCHW = x0_from_output(config.prediction, output_BCHW, noised.x_BCHW, noised.log_snr_B, noised.scales)
    if image_loss is not None:
        loss_B = loss_B + image_loss(x0_hat_BCHW, noised.x0_BCHW, noised.log_snr_B)
    if noised.step is not None:
        assert variance_BCHW is not None, "the config of a stage checks that its network predicts one"
        chain = (noised.x0_BCHW, x0_hat_BCHW, variance_BCHW.float(), noised.log_snr_B, noised.step)
        loss_B = loss_B + config.variance_weight * variance_loss(*chain, chain_length(config))
    return loss_B, x0_hat_BCHW


def diffusion_loss(
    predict: PredictOutput, x0_BCHW: Tensor, u_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Returns `denoising_loss` of `noise_images`."""
    return denoising_loss(predict, noise_images(x0_BCHW, u_B, noise_BCHW, config), config)


def bound_ends(
    predict: PredictOutput, x0_BCHW: Tensor, noise_BCHW: Tensor, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Returns the bound's prior and its reconstruction of 8-bit pixels, nats per dimension, (B,) each.

    ``noise_BCHW`` makes the latent that pixels are reconstructed from. With ``weighting: elbo`` the loss is the rest.
    """
    levels = bound_levels(config)
    log_snr_B = x0_BCHW.new_full((len(x0_BCHW),), levels.most)
    x_BCHW = add_noise(x0_BCHW, noise_BCHW, log_snr_B)
    output_BCHW, _ = split_variance(predict(network_input(x_BCHW, log_snr_B, config.schedule), log_snr_B), x_BCHW)
    x0_hat_BCHW = x0_from_output(config.prediction, output_BCHW.float(), x_BCHW, log_snr_B)
    return prior_nats(x0_BCHW, levels.least), reconstruction_nats(x0_BCHW, x0_hat_BCHW, levels.most)


def augment_lowres(
    lowres_BCHW: Tensor, level_B: Tensor, noise_BCHW: Tensor, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    """Applies noise conditioning augmentation (section 2.4): the noised low-resolution input and its log-SNR (B,)."""
    log_snr_B = log_snr_at_level(config, level_B)
    return add_noise(lowres_BCHW, noise_BCHW, log_snr_B), log_snr_B


def upsample_lowres(lowres_BCHW: Tensor, size: int | tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resizes a low-resolution image to (height, width) ``size``, bilinear; shared by training and sampling."""
    target = (size, size) if isinstance(size, int) else size
    return functional.interpolate(lowres_BCHW, size=target, mode="bilinear", align_corners=align_corners)


def to_model_range(pixels_BHWC: Tensor) -> Tensor:
    """Converts uint8 (B, H, W, C) to float32 (B, C, H, W) in [-1, 1]."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x_BCHW: Tensor) -> Tensor:
    """Converts float (B, C, H, W) in [-1, 1] to uint8 (B, H, W, C), rounded and clipped."""
    return ((x_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
