"""The diffusion transformer as an entry of `train.models.backbones.BACKBONES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.models.base import Backbone
from train.models.dit.config import SUPPORTED_CONDITIONS, DiTConfig
from train.models.dit.presets import PRESETS

if TYPE_CHECKING:
    from train.models.dit.dit import DiT


def build_dit(config: DiTConfig) -> DiT:
    """Returns a fresh diffusion transformer; imports torch on call."""
    from train.models.dit.dit import DiT

    return DiT(config)


DIT = Backbone(DiTConfig, PRESETS, build_dit, SUPPORTED_CONDITIONS, zero_at_start="out.weight")
