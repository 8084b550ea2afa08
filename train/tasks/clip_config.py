"""Config of the `clip` task. Light: loads no torch."""

from __future__ import annotations

from pydantic import Field

from train.config import TrainConfig
from train.models.clip_config import ClipModelConfig


class ClipTaskConfig(ClipModelConfig):
    """The two towers, and augmentation of the images."""

    flip: bool = Field(False, description="mirror half of the images; off, since captions mention left and right")
    shift: int = Field(3, ge=0, description="shift images by up to this many pixels, edges repeated")


class ClipTrainingConfig(ClipTaskConfig, TrainConfig):
    """A small CLIP trained contrastively on the run's own pairs: keys of the model and of the training loop."""
