"""Config of the `clip` task. Light: loads no torch."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from train.config import TrainConfig
from train.models.clip_config import ClipModelConfig


class ClipTaskConfig(ClipModelConfig):
    """The two towers, and augmentation of the images."""

    flip: bool = Field(False, description="mirror half of the images; off, since captions mention left and right")
    shift: int = Field(3, ge=0, description="shift images by up to this many pixels, edges repeated")


class ClipTrainingConfig(ClipTaskConfig, TrainConfig):
    """A small CLIP trained contrastively on the run's own pairs: keys of the model and of the training loop."""

    # Each pair is told from the others of its batch, so what is learned depends on how batches are split.
    resumable: ClassVar[frozenset[str]] = TrainConfig.resumable - {"accumulation"}

    @model_validator(mode="after")
    def _check_accumulation(self) -> Self:
        if self.accumulation > 1:
            raise ValueError(
                f"accumulation={self.accumulation}: the contrastive loss compares the pairs of a micro-batch alone, so "
                "smaller ones teach less; set it to 1, and batch_size lower or activation_checkpointing if memory ends"
            )
        return self
