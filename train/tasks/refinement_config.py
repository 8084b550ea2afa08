"""Config of the `refinement` task. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from dataprep.io.config import Config
from train.diffusion.config import DiffusionConfig
from train.init_config import InitConfig
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.vq_config import VqTrainingConfig

IN_EXPORT = "autoencoder.*"  # tensors of an export that training has apart, from the entry with task: vq
# What counts of `diffusion`: the noise of the low-resolution image.
LOWRES_KEYS = ("lowres_schedule", "lowres_max_level", "lowres_betas", "lowres_align_corners")


class RefinementTrainingConfig(DiffusionTrainingConfig):
    """A super-resolution stage of the cascade that predicts the codes of an autoencoder.

    Of `diffusion` only keys ``lowres_*`` mean something.
    """

    trains: ClassVar[str] = "refinement"

    task: Literal["refinement"] = Field(  # type: ignore[assignment]
        "refinement", description="super-resolution by codes of an autoencoder"
    )
    autoencoder: str = Field(description="the entry of `train` with task: vq whose codes it predicts")
    model: str = Field("refiner-tiny", description="preset of the network, see docs/vq.md")
    diffusion: DiffusionConfig = Field(
        DiffusionConfig(lowres_max_level=0.3), description="noise of the low-resolution image: keys `lowres_*`"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of each label that goes to all codes equally")

    @field_validator("init")
    @classmethod
    def _leave_out_autoencoder(cls, init: InitConfig | None) -> InitConfig | None:
        if init is None or IN_EXPORT in init.unexpected:
            return init
        return init.model_copy(update={"unexpected": (*init.unexpected, IN_EXPORT)})

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        if self.adversarial is not None:
            raise ValueError("adversarial: no gradient passes chosen codes; give it to the autoencoder's entry")
        if self.perceptual is not None:
            raise ValueError("perceptual: codes are compared, not images; leave it out")
        if self.token_drop:
            raise ValueError(f"token_drop={self.token_drop}: only a diffusion stage has it; leave it out")
        default = DiffusionConfig()
        for name in self.diffusion.model_fields_set:
            if name not in LOWRES_KEYS and getattr(self.diffusion, name) != getattr(default, name):
                raise ValueError(
                    f"diffusion.{name}={getattr(self.diffusion, name)}: codes are not denoised; leave it out (only "
                    f"{', '.join(LOWRES_KEYS)} count)"
                )
        return self

    def needed(self) -> tuple[str, ...]:
        """Returns the entries of `train` without which this one cannot be trained."""
        return (self.autoencoder,)

    def take_from(self, trainings: Mapping[str, Config]) -> Self:
        """Returns the config with the layout of its autoencoder; raises ValueError where there is none that fits."""
        found = trainings.get(self.autoencoder)
        if not isinstance(found, VqTrainingConfig):
            names = [name for name, training in trainings.items() if isinstance(training, VqTrainingConfig)]
            raise ValueError(
                f"autoencoder={self.autoencoder} is no entry of `train` with task: vq; "
                + (f"take one of {', '.join(names)}" if names else "add one")
            )
        if found.resolution != self.resolution:
            raise ValueError(
                f"autoencoder={self.autoencoder} is trained at resolution {found.resolution}; train one at "
                f"{self.resolution}"
            )
        layout = found.autoencoder_config()
        taken: dict[str, Any] = {"patch": layout.stride(), "autoencoder": layout.model_dump(mode="json")}
        bound = self.model_copy(update={"model_overrides": self.model_overrides | taken})
        multiple, side = bound.size_multiple(), self.crop or self.resolution
        if side % multiple:
            raise ValueError(f"autoencoder={self.autoencoder} needs multiples of {multiple} pixels, not {side}")
        return bound
