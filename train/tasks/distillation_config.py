"""Config of the `distillation` task. Light: loads no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import NameIn
from train.diffusion.config import GuidanceConfig, Spacing
from train.diffusion.samplers import PER_ROW
from train.tasks.diffusion_config import DiffusionTrainingConfig


class DistillationConfig(GuidanceConfig):
    """The teacher, and the few steps that the student learns to take in its place. Guidance is the teacher's."""

    teacher: str = Field(
        description="the stage to learn from, whose weights the student begins with: RUN, RUN@FINGERPRINT, RUN:STAGE, "
        "an export or a stage's folder"
    )
    steps: int = Field(4, ge=1, le=1000, description="network evaluations of the student")
    teacher_steps: int = Field(
        4, ge=1, le=1000, description="evaluations of the teacher for one of the student; 2: progressive distillation"
    )
    sampler: Annotated[str, NameIn(PER_ROW)] = Field("dpmpp_2m", description="sampler of the teacher")
    spacing: Spacing = Field("time", description="spacing of the teacher's steps; the student's are every n-th of them")


class DistillationTrainingConfig(DiffusionTrainingConfig):
    """A cascade stage that learns a trained one's steps in few: keys of the stage, of the loop and of the loader."""

    learns_variance: ClassVar[bool] = False

    task: Literal["distillation"] = Field(  # type: ignore[assignment]
        "distillation", description="a trained stage's steps in few, see docs/distillation.md"
    )
    distillation: DistillationConfig = Field(description="the teacher and the steps")
    text_drop: float = Field(0.0, ge=0, le=1, description="share of samples trained without text, as the teacher's")

    @model_validator(mode="after")
    def _check_student(self) -> Self:
        if self.diffusion.weighting == "elbo":
            raise ValueError(
                "diffusion.weighting=elbo: the bound is of data, and a student learns from its teacher; take plain"
            )
        if self.diffusion.variance_weight:
            raise ValueError(
                f"diffusion.variance_weight={self.diffusion.variance_weight}: a student is sampled without noise, so "
                "the variance of its steps stays the teacher's; set it to 0"
            )
        if self.adversarial is not None:
            raise ValueError("adversarial: a student learns from its teacher, not from images; leave it out")
        if self.image_embedding:
            raise ValueError("image_embedding=true: a teacher is guided by its caption alone; set it to false")
        if self.half_size_steps:
            raise ValueError(f"half_size_steps={self.half_size_steps}: the teacher knows one size; set it to 0")
        return self
