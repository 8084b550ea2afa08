"""The U-Net as an entry of `train.models.backbones.BACKBONES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.models.base import Backbone
from train.models.unet.config import SUPPORTED_CONDITIONS, UNetConfig
from train.models.unet.presets import PRESETS

if TYPE_CHECKING:
    from train.models.unet.unet import UNet


def build_unet(config: UNetConfig) -> UNet:
    """Returns a fresh U-Net; imports torch on call."""
    from train.models.unet.unet import UNet

    return UNet(config)


UNET = Backbone(UNetConfig, PRESETS, build_unet, SUPPORTED_CONDITIONS, zero_at_start="out.weight")
