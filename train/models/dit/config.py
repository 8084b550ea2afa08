"""Config of the diffusion transformer. Light: loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from train.models.base import ENCODED_TEXT, DenoiserConfig

SUPPORTED_CONDITIONS = (
    *("text_BLD", "text_mask_BL", "text_keep_B", "lowres_BCHW", "lowres_log_snr_B", "image_embedding_BE"),
    *ENCODED_TEXT,
)


class DiTConfig(DenoiserConfig):
    """Layout of a diffusion transformer on the patches of an image, without an autoencoder."""

    patch: int = Field(default=4, ge=1, description="height and width of a patch, which becomes one token")
    width: int = Field(default=384, ge=8, description="channels of a token")
    depth: int = Field(default=12, ge=1, description="transformer blocks")
    head_width: int = Field(default=64, ge=4, multiple_of=4, description="channels per attention head")
    mlp: float = Field(
        default=4.0, gt=0, description="hidden width / width of a plain feed-forward network with as many parameters"
    )
    bottleneck: int = Field(
        default=0, ge=0, description="width between the two linear layers that embed a patch; 0: one layer"
    )
    attention: Literal["joint", "cross"] = Field(
        default="joint",
        description="how the caption enters a block: its keys and values beside the image's, or a layer of its own",
    )
    window: int = Field(
        default=0,
        ge=0,
        multiple_of=2,
        description="patches per side within which the image attends to itself, for crops; 0: the whole image",
    )
    positions: bool = Field(default=True, description="add coordinate features of the image; not with crops")
    modulation: Literal["block", "shared"] = Field(
        default="block",
        description="shift, scale and gate: a matrix per block, or one for all with an offset per block",
    )
    context_width: int = Field(default=128, ge=8, multiple_of=4, description="width of the caption tokens inside")
    text_layers: int = Field(default=0, ge=0, description="transformer blocks over the caption tokens")
    text_directions: bool = Field(
        default=False,
        description="of these, heads that look back or ahead only: easier word order; from 3 heads of 32 on",
    )
    condition_width: int = Field(default=384, ge=8, description="width of noise embedding + pooled text")

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if self.width % self.head_width:
            raise ValueError(
                f"width {self.width} does not split into heads of {self.head_width}; change width or head_width"
            )
        if self.window and self.attention == "joint":
            raise ValueError(f"window {self.window} cannot hold the caption beside the image; set attention: cross")
        if self.window and self.positions:
            raise ValueError(f"window {self.window} is for crops, and positions=true span the image; set it to false")
        if self.lowres_residual and not self.lowres:
            raise ValueError("lowres_residual needs a low-resolution input; set lowres: true, or leave it out")
        return self

    def size_multiple(self) -> int:
        """Returns the side of a patch, or of a window of patches, in pixels."""
        return self.patch * max(1, self.window)

    def hidden_width(self) -> int:
        """Returns the hidden width of SwiGLU's three matrices: 2/3 of a plain network's, a multiple of 8."""
        return max(8, round(self.mlp * self.width / 12) * 8)

    def needs_whole_images(self) -> str | None:
        """Names attention over the whole image, and coordinates, which span it."""
        if self.positions:
            return "positions=true"
        return None if self.window else "attention over the whole image"
