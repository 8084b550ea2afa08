"""Registry of the training tasks. Light: a task's own module, which imports torch, is loaded by `TaskKind.load`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataprep.io.errors import UserError
from train.config import TrainConfig
from train.tasks.bert_config import BertTrainingConfig
from train.tasks.clip_config import ClipTrainingConfig
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.distillation_config import DistillationTrainingConfig
from train.tasks.prior_config import PriorTrainingConfig
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.t5_config import T5TrainingConfig
from train.tasks.text_tuning_config import TextTuningConfig
from train.tasks.vq_config import VqTrainingConfig

TrainFunction = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class TaskKind:
    """A kind of training.

    ``load`` returns its function, called on every rank as ``train(**inputs, config=..., folder=..., seed=...)``; it
    builds the task and its loaders, runs `train.loop.train` and returns the figures of that.
    """

    config: type[TrainConfig]
    load: Callable[[], TrainFunction]


def load_diffusion() -> TrainFunction:
    """Imports `train_diffusion`."""
    from train.tasks.diffusion import train_diffusion

    return train_diffusion


def load_distillation() -> TrainFunction:
    """Imports `train_distillation`."""
    from train.tasks.distillation import train_distillation

    return train_distillation


def load_prior() -> TrainFunction:
    """Imports `train_prior`."""
    from train.tasks.prior import train_prior

    return train_prior


def load_vq() -> TrainFunction:
    """Imports `train_vq`."""
    from train.tasks.vq import train_vq

    return train_vq


def load_refinement() -> TrainFunction:
    """Imports `train_refinement`."""
    from train.tasks.refinement import train_refinement

    return train_refinement


def load_clip() -> TrainFunction:
    """Imports `train_clip`."""
    from train.tasks.clip import train_clip

    return train_clip


def load_bert() -> TrainFunction:
    """Imports `train_bert`."""
    from train.tasks.bert import train_bert

    return train_bert


def load_t5() -> TrainFunction:
    """Imports `train_t5`."""
    from train.tasks.t5 import train_t5

    return train_t5


def load_text_tuning() -> TrainFunction:
    """Imports `train_text_tuning`."""
    from train.tasks.text_tuning import train_text_tuning

    return train_text_tuning


TASKS: dict[str, TaskKind] = {
    "diffusion": TaskKind(DiffusionTrainingConfig, load_diffusion),
    "distillation": TaskKind(DistillationTrainingConfig, load_distillation),
    "prior": TaskKind(PriorTrainingConfig, load_prior),
    "vq": TaskKind(VqTrainingConfig, load_vq),
    "refinement": TaskKind(RefinementTrainingConfig, load_refinement),
    "clip": TaskKind(ClipTrainingConfig, load_clip),
    "t5": TaskKind(T5TrainingConfig, load_t5),
    "bert": TaskKind(BertTrainingConfig, load_bert),
    "text_tuning": TaskKind(TextTuningConfig, load_text_tuning),
}


def find_task(name: str) -> TaskKind:
    """Returns the task ``name``; raises UserError for an unknown one."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; take one of {', '.join(TASKS)}")
    return TASKS[name]
