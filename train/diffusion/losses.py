"""Losses of a stage: how a weighted error of the network's output becomes a loss per sample.

Light: importing it loads no torch, so that the config can take its choices from `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from train.diffusion.config import DiffusionConfig

# (error (B, C, H, W), weight of its square (B,), config) -> loss (B,)
Loss: TypeAlias = "Callable[[Tensor, Tensor, DiffusionConfig], Tensor]"


def l2_loss(error_BCHW: Tensor, weight_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns the mean of weight * error^2."""
    return error_BCHW.square().mean(dim=(1, 2, 3)) * weight_B


def l1_loss(error_BCHW: Tensor, weight_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns the mean of |sqrt(weight) * error|, the same in every prediction as the squared error is."""
    return error_BCHW.abs().mean(dim=(1, 2, 3)) * weight_B.sqrt()


def huber_loss(error_BCHW: Tensor, weight_B: Tensor, config: DiffusionConfig) -> Tensor:
    """Returns the mean of e^2 where e = sqrt(weight) |error| is at most ``huber_delta`` d, else of d (2 e - d)."""
    delta, away_BCHW = config.huber_delta, error_BCHW.abs() * weight_B.sqrt().view(-1, 1, 1, 1)
    near_BCHW = away_BCHW.clamp(max=delta)
    return (near_BCHW * (2 * away_BCHW - near_BCHW)).mean(dim=(1, 2, 3))


LOSSES: dict[str, Loss] = {"l2": l2_loss, "l1": l1_loss, "huber": huber_loss}
