"""The trainings of a config's section `train`: each one's class is that of its task. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from dataprep.io.config import ClassOf
from train.config import TrainConfig
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.distillation_config import DistillationTrainingConfig
from train.tasks.prior_config import PriorTrainingConfig
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.vq_config import VqTrainingConfig

CASCADE_TASKS: Mapping[str, type[TrainConfig]] = {
    "diffusion": DiffusionTrainingConfig,  # the default
    "distillation": DistillationTrainingConfig,
    "prior": PriorTrainingConfig,
    "vq": VqTrainingConfig,
    "refinement": RefinementTrainingConfig,
}
if TYPE_CHECKING:
    AnyTraining = TrainConfig
else:
    AnyTraining = Union[tuple(CASCADE_TASKS.values())]  # noqa: UP007
CascadeTraining = Annotated[AnyTraining, ClassOf("task", CASCADE_TASKS)]


def generates_images(training: Mapping[str, Any]) -> bool:
    """Returns whether a training, stored as JSON, is of a network that generates images: a stage of the cascade."""
    return "low_resolution" in training


def is_sampled(training: Mapping[str, Any]) -> bool:
    """Returns whether a training, stored as JSON, is of a part of the cascade: a stage, or its prior."""
    return generates_images(training) or training.get("task") == "prior"
