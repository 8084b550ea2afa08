"""Config of the prior. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from train.models.base import ENCODED_TEXT, DenoiserConfig

SUPPORTED_CONDITIONS = ("text_BLD", "text_mask_BL", "text_keep_B", "pooled_text_BE", *ENCODED_TEXT)


class PriorConfig(DenoiserConfig):
    """Layout of a transformer that predicts an image embedding: an image of one pixel, a channel per number."""

    image_channels: int = Field(default=64, ge=1, description="width of the image embedding, and of the text's")
    width: int = Field(default=256, ge=8, multiple_of=4, description="channels of a token")
    depth: int = Field(default=6, ge=1, description="transformer blocks")
    head_width: int = Field(default=64, ge=4, description="channels per attention head")

    @model_validator(mode="after")
    def _check_prior(self) -> Self:
        if self.width % self.head_width:
            raise ValueError(
                f"width {self.width} does not split into heads of {self.head_width}; change width or head_width"
            )
        if self.lowres or self.lowres_residual or self.image_embedding_dim:
            raise ValueError("a prior has no image as input; leave lowres, lowres_residual and image_embedding_dim out")
        if self.learned_variance:
            raise ValueError(
                "learned_variance=true: a prior predicts the embedding alone; set it to false, and "
                "diffusion.variance_weight to 0"
            )
        return self

    def vector_widths(self) -> Mapping[str, int]:
        """Returns the width of the caption's embedding in the space of the image's."""
        return {"pooled_text_BE": self.image_channels}

    def size_multiple(self) -> int:
        """Returns 1: an embedding is one pixel."""
        return 1

    def fixed_diffusion(self) -> Mapping[str, Any]:
        """Returns the prediction: the embedding itself (Ramesh et al. 2022, section 2.2)."""
        return {"prediction": "x0"}
