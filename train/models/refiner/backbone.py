"""The refiner as an entry of `train.models.backbones.BACKBONES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.models.base import Backbone
from train.models.refiner.config import PRESETS, SUPPORTED_CONDITIONS, RefinerConfig

if TYPE_CHECKING:
    from torch import Tensor

    from train.models.refiner.refiner import Refiner


def build_refiner(config: RefinerConfig) -> Refiner:
    """Returns a fresh refiner with an untrained autoencoder; imports torch on call."""
    from train.models.refiner.refiner import Refiner

    return Refiner(config)


def make_hidden_codes(config: RefinerConfig, batch: int, size: int) -> Tensor:
    """Returns what the network takes in place of noisy images of ``size`` pixels per side: hidden codes."""
    import torch

    side = size // config.autoencoder.stride()
    return torch.full((batch, side, side), config.autoencoder.codes)


REFINER = Backbone(
    RefinerConfig,
    PRESETS,
    build_refiner,
    SUPPORTED_CONDITIONS,
    zero_at_start="out.weight",
    task="refinement",
    make_input=make_hidden_codes,
)
