"""Config of the small CLIP. Light: loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config


class ClipModelConfig(Config):
    """The two towers of a small CLIP and their sizes."""

    image_size: int = Field(64, ge=32, multiple_of=32, description="height and width of the images")
    embed_dim: int = Field(64, ge=8, description="width of the shared embedding space")
    image_tower: Literal["resnet", "vit"] = Field(
        "resnet", description="resnet: a ResNet with attention pooling, as RN50; vit: a vision transformer, as ViT-B-32"
    )
    vision_width: int = Field(8, ge=8, multiple_of=8, description="resnet: channels of the first residual stage")
    vision_blocks: tuple[int, int, int, int] = Field(
        (1, 1, 1, 1), strict=False, description="resnet: residual blocks of each stage"
    )
    patch_size: int = Field(8, ge=1, description="vit: height and width of a patch, which divides image_size")
    vit_width: int = Field(96, ge=8, description="vit: width of the transformer")
    vit_layers: int = Field(2, ge=1, description="vit: layers of the transformer")
    vit_heads: int = Field(3, ge=1, description="vit: attention heads")
    text_tower: Literal["trained", "frozen"] = Field(
        "trained",
        description="trained: a causal transformer of its own; frozen: the run's text encoder as it is, and a "
        "projection head, to which the image tower is aligned",
    )
    text_width: int = Field(96, ge=8, description="trained: width of the text tower")
    text_layers: int = Field(1, ge=1, description="trained: layers of the text tower")
    text_heads: int = Field(3, ge=1, description="trained: attention heads of the text tower")
    head_width: int = Field(256, ge=8, description="frozen: width of the projection head's hidden layer")
    context_length: int = Field(32, ge=4, description="tokens per caption, end token included; longer ones are cut")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for part in ("text", "vit"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads:
                raise ValueError(f"{part}_width={width} is not a multiple of {part}_heads={heads}; change one")
        if self.image_tower == "vit" and self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}; take 4, 8 or 16"
            )
        return self
