"""Config of the `vq` task. Light: loads no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config
from dataprep.io.pack_format import pixels_column
from train.config import TrainConfig
from train.loader.config import LoaderConfig
from train.models.vq.config import VqConfig, vq_config
from train.tasks.adversarial_config import AdversarialConfig


class VqStageConfig(Config):
    """An autoencoder with a codebook, of the images at one resolution."""

    resolution: int = Field(ge=1, description="height and width of the images")
    crop: int | None = Field(None, ge=1, description="train on random crops of this size; None: on whole images")
    min_original: int = Field(
        0, ge=0, description="train on images whose original had at least this shorter side; the others were enlarged"
    )
    model: str = Field("vq-tiny", description="preset of the autoencoder, see docs/vq.md")
    model_overrides: dict[str, Any] = Field(default_factory=dict, description="fields of the preset to replace")
    reconstruction: Literal["l1", "l2"] = Field("l1", description="error of the decoded image that is trained for")
    commitment: float = Field(
        0.25, ge=0, description="weight of the distance of the encoder's output to its code (van den Oord et al. 2017)"
    )
    codebook_decay: float = Field(0.99, ge=0, lt=1, description="of the averages that the codes are, per update")
    revive_below: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="a code is dead, and moved, that gets less than this share of an equal part of the positions",
    )

    adversarial: AdversarialConfig | None = Field(
        None, description="a discriminator of the decoded images; None: the error alone counts"
    )

    def autoencoder_config(self) -> VqConfig:
        """Returns the autoencoder's config: the preset and its overrides."""
        return vq_config(self.model, self.model_overrides)

    def size_multiple(self) -> int:
        """Returns the number that divides the height and width of every valid image."""
        return self.autoencoder_config().stride()

    def side_divisors(self) -> dict[str, int]:
        """Returns the numbers that divide height and width of every image to train on, by the key that needs them."""
        judged = self.adversarial.side_divisors() if self.adversarial is not None else {}
        return {f"model={self.model}": self.size_multiple()} | judged

    def stored_sizes(self) -> tuple[int, ...]:
        """Returns the resolutions of the packed images that training reads."""
        return (self.resolution,)

    def pixel_columns(self) -> tuple[str, ...]:
        """Returns the pack column that training reads."""
        return (pixels_column(self.resolution),)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        side, multiple = self.crop or self.resolution, self.size_multiple()
        if side > self.resolution:
            raise ValueError(f"crop={self.crop} is larger than resolution={self.resolution}; take a smaller crop")
        if side % multiple:
            raise ValueError(
                f"model={self.model} has a code for {multiple}x{multiple} pixels, which {side} is no multiple of; "
                "change resolution or crop"
            )
        return self


class VqTrainingConfig(VqStageConfig, TrainConfig):
    """An autoencoder for a refinement stage: keys of the task, of the training loop and of the loader."""

    task: Literal["vq"] = Field("vq", description="an autoencoder with a codebook")
    data: LoaderConfig = Field(LoaderConfig(), description="how training data is read")

    @model_validator(mode="after")
    def _check_loop(self) -> Self:
        if self.adversarial is not None:
            self.adversarial.check(self.crop or self.resolution, self.steps)
        if self.adapter is not None:
            raise ValueError("adapter: an autoencoder of this size is trained whole; leave adapter out")
        if self.activation_checkpointing:
            raise ValueError(
                "activation_checkpointing=true: the autoencoder cannot recompute blocks; set it to false, and "
                "accumulation higher if memory ends"
            )
        return self
