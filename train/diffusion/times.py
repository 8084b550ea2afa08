"""Distributions of the times that a stage is trained at, and how densely they cover the noise levels.

Light: importing it loads no torch, so that the config can take its choices from `TIMES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.diffusion.schedules import log_snr_slope, time_at_log_snr

if TYPE_CHECKING:
    from torch import Tensor

    from train.diffusion.config import DiffusionConfig

LEAST = 1e-6  # distance of a uniform number from 0 and 1, where a quantile is infinite


@dataclass(frozen=True)
class TimeDistribution:
    """``quantile(u_B, config)`` turns uniform numbers into times (B,) in [0, 1]; ``density(t_B, config)`` is theirs."""

    quantile: Callable[[Tensor, DiffusionConfig], Tensor]
    density: Callable[[Tensor, DiffusionConfig], Tensor]


def logit_normal_quantile(u_B: Tensor, config: DiffusionConfig) -> Tensor:
    """log(t / (1 - t)) ~ N(mean, std^2) (Esser et al. 2024, equation 19): most times where images take shape."""
    standard_B = u_B.double().clamp(LEAST, 1 - LEAST).mul(2).sub(1).erfinv() * math.sqrt(2)
    return (config.times_mean + config.times_std * standard_B).sigmoid().to(u_B.dtype)


def logit_normal_density(t_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns the density of `logit_normal_quantile`."""
    standard_B = (t_B.logit() - config.times_mean) / config.times_std
    return (-standard_B.square() / 2).exp() / (config.times_std * math.sqrt(2 * math.pi) * t_B * (1 - t_B))


TIMES: dict[str, TimeDistribution] = {
    "uniform": TimeDistribution(lambda u_B, config: u_B, lambda t_B, config: t_B.new_ones(t_B.shape)),
    "logit_normal": TimeDistribution(logit_normal_quantile, logit_normal_density),
}


def draw_times(u_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns the times to train at for numbers (B,) that are uniform in [0, 1); rises with them."""
    return TIMES[config.times].quantile(u_B, config)


def log_snr_spread(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns 1 / density of log-SNR in training (B,): a loss times it is one over log-SNR, however times are drawn."""
    slope_B = log_snr_slope(log_snr_B, config.schedule, config.log_snr_shift, config.betas)
    if config.times == "uniform":
        return slope_B
    t_B = time_at_log_snr(log_snr_B, config.schedule, config.log_snr_shift, config.betas)
    return slope_B / TIMES[config.times].density(t_B, config)
