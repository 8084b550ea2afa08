"""Config of the `prior` task. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.pack_format import IMAGE_FEATURES, TEXT_FEATURES
from train.models.backbones import denoiser_config
from train.models.base import DenoiserConfig
from train.tasks.denoising_config import CascadeTrainingConfig, DenoisingStageConfig


class PriorStageConfig(DenoisingStageConfig):
    """What the prior learns. An image embedding is an image of one pixel, so it has the keys of such a stage."""

    trains: ClassVar[str] = "prior"
    resolution: ClassVar[int] = 1
    low_resolution: ClassVar[int | None] = None
    crop: ClassVar[int | None] = None
    min_original: ClassVar[int] = 0
    half_size_steps: ClassVar[int] = 0

    model: str = Field("prior-tiny", description="preset of the network, see docs/dalle2.md")

    def denoiser_config(self, text_dim: int | None = None, image_dim: int | None = None) -> DenoiserConfig:
        """As `DenoisingStageConfig.denoiser_config`; an image embedding has as many numbers as the image channels."""
        widths = {"text_dim": text_dim, "image_channels": image_dim}
        known = {name: width for name, width in widths.items() if width is not None}
        return denoiser_config(self.model, self.model_overrides | known)

    def pixel_columns(self) -> tuple[str, ...]:
        """Returns no column: it reads no pixels."""
        return ()

    def vector_columns(self) -> tuple[str, ...]:
        """Returns the pack's columns of CLIP embeddings: of the image, of the caption."""
        return (IMAGE_FEATURES, TEXT_FEATURES)

    @model_validator(mode="before")
    @classmethod
    def _predict_embedding(cls, data: Any) -> Any:
        """Fills in what every prior predicts."""
        given = data.get("diffusion", {}) if isinstance(data, Mapping) else None
        return data | {"diffusion": {"prediction": "x0"} | given} if isinstance(given, dict) else data


class PriorTrainingConfig(PriorStageConfig, CascadeTrainingConfig):
    """The prior of a cascade: keys of the task, of the training loop and of the loader."""

    task: Literal["prior"] = Field("prior", description="a denoiser of CLIP's image embeddings, given a caption")

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.sample_every:
            raise ValueError(f"sample_every={self.sample_every}: a prior makes no images to show; set it to 0")
        return self
