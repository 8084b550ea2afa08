"""Config of the small CLIP. Light: loads no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from dataprep.io.config import Config


class ClipModelConfig(Config):
    """Sizes of the two towers: a ResNet with attention pooling (as RN50) and a causal transformer."""

    image_size: int = Field(64, ge=32, multiple_of=32, description="height and width of the images")
    embed_dim: int = Field(64, ge=8, description="width of the shared embedding space")
    vision_width: int = Field(8, ge=8, multiple_of=8, description="channels of the first residual stage")
    vision_blocks: tuple[int, int, int, int] = Field(
        (1, 1, 1, 1), strict=False, description="residual blocks of each stage"
    )
    text_width: int = Field(96, ge=8, description="width of the text tower")
    text_layers: int = Field(1, ge=1, description="layers of the text tower")
    text_heads: int = Field(3, ge=1, description="attention heads of the text tower")
    context_length: int = Field(32, ge=4, description="tokens per caption, end token included; longer ones are cut")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_width={self.text_width} is not a multiple of text_heads={self.text_heads}; change one"
            )
        return self
