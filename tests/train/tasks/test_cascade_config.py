"""The trainings of section `train`, by their task."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from train.config import TrainConfig
from train.tasks.cascade_config import CASCADE_TASKS, CascadeTraining, generates_images
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.registry import TASKS
from train.tasks.vq_config import VqTrainingConfig

TRAINING: TypeAdapter[TrainConfig] = TypeAdapter(CascadeTraining)


def test_the_task_chooses_the_class() -> None:
    assert type(TRAINING.validate_python({"resolution": 16})) is DiffusionTrainingConfig
    assert type(TRAINING.validate_python({"resolution": 16, "task": "vq"})) is VqTrainingConfig
    assert all(CASCADE_TASKS[name] is TASKS[name].config for name in CASCADE_TASKS)


def test_a_training_is_stored_and_read_as_json() -> None:
    for values in ({"resolution": 16}, {"resolution": 64, "task": "vq", "model_overrides": {"codes": 8}}):
        training = TRAINING.validate_python(values)
        stored = TRAINING.dump_python(training, mode="json")
        assert stored["task"] == getattr(training, "task") and TRAINING.validate_python(stored) == training  # noqa: B009
        assert generates_images(stored) == isinstance(training, DiffusionTrainingConfig)


def test_errors_name_the_key_and_the_tasks() -> None:
    with pytest.raises(ValidationError, match="task=vg is unknown; take one of diffusion, distillation"):
        TRAINING.validate_python({"task": "vg"})
    with pytest.raises(ValidationError) as caught:
        TRAINING.validate_python({"resolution": 16, "task": "vq", "stepz": 3})
    assert caught.value.errors()[0]["loc"] == ("stepz",)
