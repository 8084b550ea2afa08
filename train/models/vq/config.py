"""Config and named layouts of the autoencoder with a codebook. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from dataprep.io.config import Config
from dataprep.io.errors import UserError


class VqConfig(Config):
    """Layout of a convolutional autoencoder between whose halves each position is one of a number of codes."""

    image_channels: int = Field(default=3, ge=1, description="channels of the image")
    patch: int = Field(default=1, ge=1, description="pixels per side that the first layer joins to one position")
    widths: tuple[int, ...] = Field(
        default=(64, 128), min_length=1, strict=False, description="channels, from fine to coarse; each halves the size"
    )
    blocks: int = Field(default=1, ge=1, description="residual blocks at each size, of encoder and decoder each")
    codes: int = Field(default=512, ge=2, description="entries of the codebook")
    code_width: int = Field(default=16, ge=1, description="numbers of an entry")

    def stride(self) -> int:
        """Returns the pixels per side that one code stands for; it divides the sides of every valid image."""
        return int(self.patch * 2 ** (len(self.widths) - 1))


PRESETS: dict[str, VqConfig] = {
    # 256x256 in 1024 codes: for training on a GPU.
    "vq-256": VqConfig(widths=(96, 192, 256, 384), blocks=2, codes=8192, code_width=32),
    # 64x64 in 256 codes on two cores.
    "vq-tiny": VqConfig(patch=2, widths=(48, 96), codes=512, code_width=16),
    # For tests and smoke runs.
    "vq-micro": VqConfig(patch=2, widths=(8, 16), codes=16, code_width=4),
}


def vq_config(preset: str, overrides: Mapping[str, Any] | None = None) -> VqConfig:
    """Returns a preset with fields replaced, validated again. Raises UserError for an unknown preset."""
    if preset not in PRESETS:
        raise UserError(f"model preset {preset!r} is unknown; take one of {', '.join(PRESETS)}")
    return VqConfig(**(PRESETS[preset].model_dump() | dict(overrides or {})))
