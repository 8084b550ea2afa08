"""Config of the U-Net. Light: loads no torch.

Sections are of arXiv 2205.11487.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from train.models.base import ENCODED_TEXT, DenoiserConfig

AttentionKind = Literal["none", "self", "cross", "joint"]
SUPPORTED_CONDITIONS = (
    *("text_BLD", "text_mask_BL", "text_keep_B", "lowres_BCHW", "lowres_log_snr_B", "image_embedding_BE"),
    *ENCODED_TEXT,
)


class UNetConfig(DenoiserConfig):
    """Layout of a U-Net. Level i works at the image's size divided by ``strides[0] * ... * strides[i]``."""

    order: Literal["base", "efficient"] = Field(
        default="base",
        description="base: resample between levels, a skip per block; efficient: A.28/A.29, a skip per level",
    )
    channels: int = Field(default=64, ge=8, description="channels of the first convolution")
    channel_mult: tuple[float, ...] = Field(
        default=(1, 2, 3, 4), strict=False, description="channels of each level / channels"
    )
    blocks: tuple[int, ...] = Field(default=(3, 3, 3, 3), strict=False, description="residual blocks of each level")
    strides: tuple[int, ...] = Field(
        default=(1, 2, 2, 2), strict=False, description="down-sampling factor at the entry of each level"
    )
    attention: tuple[AttentionKind, ...] = Field(
        default=("none", "joint", "joint", "joint"),
        strict=False,
        description="attention after the blocks of each level",
    )
    attention_every_block: bool = Field(
        default=True, description="attention after every block of a level; false: after the last one"
    )
    middle: bool = Field(default=True, description="block, attention and block between the two halves")
    positions: bool = Field(default=False, description="add coordinate features of the image; not with crops")
    head_width: int = Field(default=64, ge=4, description="channels per attention head")
    feed_forward: int = Field(
        default=0, ge=0, description="hidden width / channels of the feed-forward network after attention; 0: none"
    )
    combine: Literal["block", "level"] = Field(
        default="block",
        description="where the condition scales and shifts: second norm of each block, or entry of each level (A.28)",
    )
    groups: int = Field(default=16, ge=1, description="largest number of groups of a GroupNorm")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the last convolution of each block")
    context_width: int = Field(default=128, ge=8, description="width of the caption tokens inside the U-Net")
    text_layers: int = Field(default=0, ge=0, description="transformer blocks over the caption tokens")
    text_directions: bool = Field(
        default=False,
        description="of these, heads that look back or ahead only: easier word order; from 3 heads of 32 on",
    )
    condition_width: int = Field(default=256, ge=8, description="width of noise embedding + pooled text")

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in ("channel_mult", "blocks", "strides", "attention")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{lengths} need one entry per level each; make them equally long")
        for name in ("channel_mult", "blocks", "strides"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} {list(getattr(self, name))} must be above 0 at every level")
        for width in self.level_channels():
            heads = max(1, width // self.head_width)
            if width % heads:
                raise ValueError(f"{width} channels do not split into {heads} heads; change head_width or channel_mult")
        if self.lowres_residual and not self.lowres:
            raise ValueError("lowres_residual needs a low-resolution input; set lowres: true, or leave it out")
        if self.context_width % 4:
            raise ValueError(f"context_width {self.context_width} must be a multiple of 4")
        return self

    def level_channels(self) -> list[int]:
        """Returns the channels of each level."""
        return [round(self.channels * factor) for factor in self.channel_mult]

    def size_multiple(self) -> int:
        """Returns the product of the strides, which must divide height and width of an image."""
        return math.prod(self.strides)

    def needs_whole_images(self) -> str | None:
        """Names self-attention, whose number of keys grows with the image, and coordinates, which span the image."""
        last = self.attention[-1]
        kinds = {*self.attention, *([("joint" if last == "none" else last)] if self.middle else [])}
        if self.positions:
            return "positions=true"
        return next((f"attention {kind!r} over the image" for kind in ("self", "joint") if kind in kinds), None)

    def level_attention(self, level: int, count: int) -> list[AttentionKind]:
        """Returns the kind of attention after each of ``count`` blocks of a level."""
        kind: AttentionKind = self.attention[level]
        return [kind if self.attention_every_block or i == count - 1 else "none" for i in range(count)]

    def norm_groups(self, channels: int) -> int:
        """Returns the largest divisor of ``channels`` that is at most ``groups``."""
        return max(groups for groups in range(1, self.groups + 1) if channels % groups == 0)
