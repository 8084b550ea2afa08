"""Log, TensorBoard, Weights & Biases."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from dataprep.io import storage
from dataprep.io.errors import UserError
from tests.helpers.toys import config, run
from train.logger import MetricLogger


class Board:
    """Replaces the wandb module and records its calls."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> Board:
        self.settings = settings
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()
    module = types.ModuleType("wandb")
    module.init, module.Settings = board.init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return board


def test_wandb_gets_the_rows_of_one_run_over_a_resume(tmp_path: Path, board: Board) -> None:
    run(tmp_path, 12, wandb="offline")
    first = board.settings["id"]
    run(tmp_path, wandb="offline")
    assert board.settings["id"] == first and board.settings["resume"] == "allow"
    assert board.settings["mode"] == "offline" and board.settings["dir"] == str(tmp_path)
    assert [step for step, _ in board.rows] == [4, 8, 12, 8, 12, 16, 20] and "loss" in board.rows[0][1]
    assert board.finished == 2


def test_a_missing_wandb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb=online: .*set wandb=off"):
        MetricLogger(str(tmp_path), 0, config(wandb="online"))


def test_tensorboard_has_scalars_and_images(tmp_path: Path) -> None:
    logger = MetricLogger(str(tmp_path), 0, config())
    logger.write({"step": 5, "loss": 0.5, "grad_norm": None})
    logger.write_image("samples", np.full((4, 6, 3), 200, np.uint8), 5)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"] and events.Tags()["images"] == ["samples"]
    assert (tmp_path / "samples/step-00000005.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_have_the_time_of_each_part(tmp_path: Path) -> None:
    import json

    run(tmp_path)
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert {"data_ms", "forward_ms", "backward_ms", "step_ms", "samples_per_second", "memory_mb"} <= set(row)
    assert row["forward_ms"] > 0 and row["backward_ms"] > 0 and "mfu" not in row


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_have_mfu_where_the_peak_is_known(tmp_path: Path, accumulation: int) -> None:
    run(tmp_path, peak_tflops=1e-3, accumulation=accumulation)
    forward = 2 * 8 * (8 * 33 + 33 * 8)  # operations of a batch of 8
    for row in storage.read_json_lines(str(tmp_path / "log.jsonl")):
        used = 3 * forward * 4 / row["seconds"] / 1e9  # four updates a row
        assert row["mfu"] == pytest.approx(used, rel=0.2, abs=1e-4)  # seconds are rounded
