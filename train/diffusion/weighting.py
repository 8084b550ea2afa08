"""Loss weightings: the weight over the noise level, for each prediction.

A weighting is ``weigh(log_snr_B, config) -> (B,)``: the weight of the squared error *of the network's own output*.
Light: importing it loads no torch, so that the config can take its choices from `WEIGHTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from train.diffusion.likelihood import bound_levels
from train.diffusion.times import log_snr_spread

if TYPE_CHECKING:
    from torch import Tensor

    from train.diffusion.config import DiffusionConfig, Prediction

LossWeighting: TypeAlias = "Callable[[Tensor, DiffusionConfig], Tensor]"


def weigh_plain(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Weighs every noise level with 1."""
    return log_snr_B.new_ones(log_snr_B.shape)


def weigh_min_snr(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Weighs the error of x_0 with min(SNR, gamma) (Hang et al. 2023)."""
    return convert_x0_weight(log_snr_B.exp().clamp(max=config.min_snr_gamma), log_snr_B, config.prediction)


def weigh_sigmoid(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Weighs the error of eps with sigmoid(bias - log_snr), over the density of log-SNR in training.

    So it is the weight over log-SNR for any schedule and times (Kingma and Gao 2023; Hoogeboom et al. 2024).
    """
    x0_weight_B = log_snr_spread(log_snr_B, config) * log_snr_B.exp() * (config.sigmoid_bias - log_snr_B).sigmoid()
    return convert_x0_weight(x0_weight_B, log_snr_B, config.prediction)


def weigh_velocity(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Weighs the error of the velocity of flow matching with 1, whatever the network predicts (Li and He 2025).

    With the flow time t that is 1 / t^2 on the error of x_0, constant below t = ``velocity_min_time``.
    """
    flow_time_B = (log_snr_B / -2).sigmoid()
    x0_weight_B = flow_time_B.clamp(min=config.velocity_min_time).pow(-2)
    return convert_x0_weight(x0_weight_B, log_snr_B, config.prediction)


def weigh_elbo(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Weighs as the variational bound in continuous time does (Kingma et al. 2021, equation 17).

    That is SNR / 2 on the error of x_0, over the density of log-SNR in training: the loss is the bound's integral, in
    nats per dimension. Zero beyond its levels (`train.diffusion.likelihood.bound_levels`).
    """
    levels = bound_levels(config)
    inside_B = (log_snr_B >= levels.least) & (log_snr_B <= levels.most)
    x0_weight_B = log_snr_B.exp() / 2 * log_snr_spread(log_snr_B, config) * inside_B
    return convert_x0_weight(x0_weight_B, log_snr_B, config.prediction)


def convert_x0_weight(x0_weight_B: Tensor, log_snr_B: Tensor, prediction: Prediction) -> Tensor:
    """Converts a weight (B,) of the squared error of x_0 into that of the network's own output."""
    snr_B = log_snr_B.exp()
    # |error of x_0|^2 = |error of eps|^2 / SNR = |error of v|^2 / (SNR + 1)
    #                  = |error of velocity|^2 / (sqrt(SNR) + 1)^2.
    factors: dict[str, Tensor | float] = {
        "x0": 1.0,
        "eps": 1 / snr_B,
        "v": 1 / (snr_B + 1),
        "velocity": 1 / (snr_B.sqrt() + 1).square(),
    }
    return x0_weight_B * factors[prediction]


WEIGHTINGS: dict[str, LossWeighting] = {
    "plain": weigh_plain,
    "min_snr": weigh_min_snr,
    "sigmoid": weigh_sigmoid,
    "velocity": weigh_velocity,
    "elbo": weigh_elbo,
}


def loss_weight(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns the weight (B,) at each noise level by ``config.weighting``."""
    return WEIGHTINGS[config.weighting](log_snr_B, config)
