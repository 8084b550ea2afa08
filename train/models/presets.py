"""Named U-Net layouts. Any field can be overridden; ``unet_config("tiny-base", text_dim=768)``."""

from __future__ import annotations

from typing import Any

from dataprep.schema import UserError
from train.models.unet import UNetConfig

PRESETS: dict[str, UNetConfig] = {
    # 16x16: all blocks work at 8x8 and 4x4, where a step is cheap enough to take many; the stem keeps the detail.
    "tiny-base": UNetConfig(
        order="efficient",
        channels=32,
        channel_mult=(2, 4),
        blocks=(1, 1),
        strides=(2, 2),
        attention=("joint", "joint"),
        middle=False,
        positions=True,
        head_width=32,
        text_layers=1,
        context_width=96,
        condition_width=192,
    ),
    # The super-resolution presets are for prediction x0: they start as the resized image and learn what it lacks.
    # 16x16 -> 64x64: almost all work at 16x16 and 8x8.
    "tiny-sr64": UNetConfig(
        order="efficient",
        lowres=True,
        lowres_residual=True,
        channels=16,
        channel_mult=(2, 4, 4),
        blocks=(1, 2, 2),
        strides=(2, 2, 2),
        attention=("none", "none", "joint"),
        middle=False,
        head_width=32,
        groups=8,
        context_width=64,
        condition_width=128,
    ),
    # 64x64 -> 256x256, trained on 64x64 crops, run on whole images: no self-attention, the caption at the lowest level.
    "tiny-sr256": UNetConfig(
        order="efficient",
        lowres=True,
        lowres_residual=True,
        channels=12,
        channel_mult=(2, 4, 4),
        blocks=(1, 1, 2),
        strides=(2, 2, 2),
        attention=("none", "none", "cross"),
        middle=False,
        head_width=24,
        groups=6,
        context_width=48,
        condition_width=96,
    ),
    # For tests and smoke runs: right in every part, too small to learn much.
    "micro-base": UNetConfig(
        channels=16,
        channel_mult=(1, 1.5),
        blocks=(1, 1),
        strides=(1, 2),
        attention=("none", "joint"),
        middle=False,
        positions=True,
        head_width=12,
        groups=8,
        context_width=32,
        condition_width=32,
    ),
    "micro-sr": UNetConfig(
        order="efficient",
        lowres=True,
        lowres_residual=True,
        channels=8,
        channel_mult=(2, 2),
        blocks=(1, 1),
        strides=(2, 2),
        attention=("none", "cross"),
        middle=False,
        head_width=8,
        groups=4,
        context_width=16,
        condition_width=32,
    ),
}


def unet_config(preset: str, **overrides: Any) -> UNetConfig:
    """The preset with fields replaced, checked again; UserError for an unknown preset."""
    if preset not in PRESETS:
        raise UserError(f"unet preset {preset!r} is unknown; take one of {', '.join(sorted(PRESETS))}")
    return UNetConfig(**(PRESETS[preset].model_dump() | overrides))
