"""The task registry; a task registered from outside runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from dataprep.io.errors import UserError
from tests.helpers.toys import ToyData, ToyTask, config
from train.config import TrainConfig
from train.loop import train
from train.tasks.registry import TASKS, TaskKind, find_task


@pytest.mark.parametrize("name", TASKS)
def test_tasks_take_config_folder_and_seed(name: str) -> None:
    kind = find_task(name)
    assert issubclass(kind.config, TrainConfig)
    assert {"config", "folder", "seed"} <= set(inspect.signature(kind.load()).parameters)


def test_a_new_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_toy(rows: int, config: TrainConfig, folder: str, seed: int) -> dict[str, Any]:
        assert rows == 50
        return train(ToyTask(), config, ToyData(), folder, seed)

    monkeypatch.setitem(TASKS, "toy", TaskKind(TrainConfig, lambda: train_toy))
    result = find_task("toy").load()(rows=50, config=config(steps=4), folder=str(tmp_path), seed=0)
    assert result["step"] == 4 and (tmp_path / "export/weights.safetensors").exists()


def test_unknown_task_is_refused() -> None:
    with pytest.raises(UserError, match=f"task 'vg' is unknown; take one of {', '.join(TASKS)}"):
        find_task("vg")
