"""Loss weightings: the weight over the noise level, for each prediction.

A weighting is ``weigh(log_snr_B, config) -> (B,)``: the weight of the squared error *of the network's own output*.
Light: importing it loads no torch, so that the config can take its choices from `WEIGHTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from train.diffusion.schedules import log_snr_slope

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
    """Weighs the error of eps with sigmoid(bias - log_snr), times -d log_snr/dt.

    With the slope it is the weight over log-SNR for any schedule (Kingma and Gao 2023; Hoogeboom et al. 2024).
    """
    slope_B = log_snr_slope(log_snr_B, config.schedule, config.log_snr_shift, config.betas)
    x0_weight_B = slope_B * log_snr_B.exp() * (config.sigmoid_bias - log_snr_B).sigmoid()
    return convert_x0_weight(x0_weight_B, log_snr_B, config.prediction)


def convert_x0_weight(x0_weight_B: Tensor, log_snr_B: Tensor, prediction: Prediction) -> Tensor:
    """Converts a weight (B,) of the squared error of x_0 into that of the network's own output."""
    snr_B = log_snr_B.exp()
    # |error of x_0|^2 = |error of eps|^2 / SNR = |error of v|^2 / (SNR + 1).
    factors: dict[str, Tensor | float] = {"x0": 1.0, "eps": 1 / snr_B, "v": 1 / (snr_B + 1)}
    return x0_weight_B * factors[prediction]


WEIGHTINGS: dict[str, LossWeighting] = {"plain": weigh_plain, "min_snr": weigh_min_snr, "sigmoid": weigh_sigmoid}


def loss_weight(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns the weight (B,) at each noise level by ``config.weighting``."""
    return WEIGHTINGS[config.weighting](log_snr_B, config)
