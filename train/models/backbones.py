"""Registry of the denoising networks. A stage's ``model`` names a preset; its backbone is found by that name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataprep.io.errors import UserError
from train.models.base import Backbone, DenoiserConfig
from train.models.unet.backbone import UNET

if TYPE_CHECKING:
    from torch import nn

BACKBONES: dict[str, Backbone] = {
    "unet": UNET,
}


def denoiser_config(preset: str, overrides: Mapping[str, Any] | None = None) -> DenoiserConfig:
    """Returns a preset's config with fields replaced, validated again. Raises UserError for an unknown preset."""
    for backbone in BACKBONES.values():
        if preset in backbone.presets:
            return backbone.config(**(backbone.presets[preset].model_dump() | dict(overrides or {})))
    names = sorted(name for backbone in BACKBONES.values() for name in backbone.presets)
    raise UserError(f"model preset {preset!r} is unknown; take one of {', '.join(names)}")


def backbone_name(config: DenoiserConfig) -> str:
    """Returns the name of the backbone whose config class this is."""
    for name, backbone in BACKBONES.items():
        if type(config) is backbone.config:
            return name
    raise ValueError(f"{type(config).__name__} is the config of no backbone; add it to BACKBONES")


def find_backbone(name: str) -> Backbone:
    """Returns the backbone ``name``; raises UserError for an unknown one."""
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r} is unknown; take one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build_denoiser(config: DenoiserConfig) -> nn.Module:
    """Returns a fresh network (a `Denoiser`) with weights from torch's global generator."""
    model: nn.Module = find_backbone(backbone_name(config)).build(config)
    return model


def count_parameters(config: DenoiserConfig) -> int:
    """Returns the number of parameters of a network, without allocating them."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_denoiser(config).parameters())
