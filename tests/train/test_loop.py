"""The loop on one rank: resume, skipped updates, log, export."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json_lines
from tests.helpers.toys import ToyData, ToyTask, config, rows, run
from train import resume
from train.errors import NonFiniteError
from train.init_config import InitConfig
from train.loader import feed
from train.loader.loader import Batch
from train.loader.sampler import SampleRandom
from train.loop import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run without ZeRO."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert result is not None and result["step"] == 20 and result["resumed_from"] == 0
    return folder


def test_log_has_a_row_per_window_and_validation_at_the_end(whole: Path) -> None:
    log = rows(whole)
    assert [row["step"] for row in log] == [4, 8, 12, 16, 20]
    assert "validation_loss" in log[-1] and "validation_loss" not in log[0]
    assert {"loss", "lr", "grad_norm", "size", "skipped"} <= set(log[0])
    assert list((whole / "tensorboard").iterdir())


@pytest.mark.parametrize("stop", [4, 12, 16])
def test_resumed_run_logs_the_same(whole: Path, tmp_path: Path, stop: int) -> None:
    assert run(tmp_path, stop) is None
    run(tmp_path)
    assert rows(tmp_path) == rows(whole)
    ours, theirs = (load_file(folder / "export/weights.safetensors") for folder in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_training_goes_on_when_the_weights_that_it_began_from_have_moved(whole: Path, tmp_path: Path) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(whole / "checkpoints", first)
    assert run(tmp_path / "tuned", 12, init=InitConfig(source=str(first))) is None
    first.rename(moved)
    result = run(tmp_path / "tuned", init=InitConfig(source=str(moved)))
    assert result is not None and result["resumed_from"] > 0


def weights_equal(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "export/weights.safetensors") for folder in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("schedule", [{"schedule": "constant"}, {"decay_steps": 16}], ids=str)
def test_more_steps_of_a_training_are_the_same_training(tmp_path: Path, schedule: dict[str, Any]) -> None:
    run(tmp_path / "whole", **schedule)
    run(tmp_path / "raised", steps=10, **schedule)
    assert not weights_equal(tmp_path / "raised", tmp_path / "whole")
    result = run(tmp_path / "raised", **schedule)
    assert result is not None and result["resumed_from"] == 10 and result["step"] == 20
    assert weights_equal(tmp_path / "raised", tmp_path / "whole")
    # The end of the shorter training is a row more, and begins another window.
    ours = [row for row in rows(tmp_path / "raised") if row["step"] not in (10, 12)]
    assert ours == [row for row in rows(tmp_path / "whole") if row["step"] != 12]


def test_a_schedule_that_depends_on_the_length_is_refused_at_another(tmp_path: Path) -> None:
    run(tmp_path, steps=10)
    with pytest.raises(UserError, match="another config: decay_steps was 10, now it is 20"):
        run(tmp_path)
    result = run(tmp_path, decay_steps=10)
    assert result is not None and result["resumed_from"] == 10


def test_finished_run_does_nothing(whole: Path) -> None:
    before = (whole / "log.jsonl").read_bytes()
    result = run(whole)
    assert result is not None and result["resumed_from"] == 20
    assert result["loss"] == rows(whole)[-1]["loss"] and (whole / "log.jsonl").read_bytes() == before


def test_the_export_is_the_average_and_not_the_live_weights(whole: Path) -> None:
    exported = load_file(whole / "export/weights.safetensors")
    saved = load_file(whole / "checkpoints/step-00000020/rank-00000.safetensors")
    for name, value in exported.items():
        assert torch.equal(value, saved[f"{name}|ema"])
        assert float((value - saved[f"{name}|weight"]).abs().max()) > 1e-4


class DroppingTask(ToyTask):
    """The toy with half of its hidden layer dropped in training; its grids show the weights that they are given."""

    def __init__(self, dropout: float = 0.5) -> None:
        self.dropout = dropout
        self.shown: list[dict[str, Tensor]] = []

    def build(self) -> nn.Module:
        first, swish, _, last = super().build().children()
        return nn.Sequential(first, swish, nn.Dropout(self.dropout), last)

    def sample_grid(self, weights: dict[str, Tensor], batch: Batch, seed: int) -> np.ndarray:
        self.shown.append(weights)
        return np.zeros((2, 2, 3), np.uint8)


def train_dropping(folder: Path, dropout: float = 0.5, **changes: Any) -> tuple[DroppingTask, list[dict[str, Any]]]:
    task = DroppingTask(dropout)
    train(task, config(**changes), ToyData(), str(folder), 0, ToyData(seed=5))
    return task, rows(folder)


def test_validation_is_without_dropout_and_the_same_each_time(tmp_path: Path) -> None:
    # A rate of next to nothing: the weights stay as they were.
    still: dict[str, Any] = {"learning_rate": 1e-30, "weight_decay": 0.0, "steps": 8, "validate_every": 4}
    values = {}
    for dropout in (0.0, 0.5):
        _, log = train_dropping(tmp_path / str(dropout), dropout, **still)
        values[dropout] = [row["validation_loss"] for row in log]
    assert values[0.5] == values[0.0] and values[0.5][0] == values[0.5][1]


def test_training_has_dropout_before_and_after_a_validation(tmp_path: Path) -> None:
    (_, plain), (_, validated) = (train_dropping(tmp_path / str(every), validate_every=every) for every in (0, 4))
    _, kept = train_dropping(tmp_path / "kept", dropout=0.0)
    losses = [[row["loss"] for row in log] for log in (plain, validated, kept)]
    assert losses[0] == losses[1] and losses[0][0] != losses[2][0]
    assert all("validation_loss" in row for row in validated)


class PreparingToy(ToyTask):
    """Draws its noise ahead, and keeps the threads that did."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        self.threads.add(threading.current_thread().name)
        return batch | {"x": batch["x"], "noise": random.normal("noise", 8)}

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        error = model(batch["x"] + batch["noise"]) - batch["x"]
        return error.square().mean(), {"size": error.abs().mean()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_task_prepares_batches_ahead_of_the_training_thread(whole: Path, tmp_path: Path, workers: int) -> None:
    task = PreparingToy()
    train(task, config(workers=workers), ToyData(), str(tmp_path), 0, ToyData(seed=5))
    main = threading.current_thread().name
    assert task.threads == ({main} if workers == 0 else {main, "feed_0"})  # the training thread validates
    assert rows(tmp_path) == rows(whole)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_model_is_fed_few_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)  # of no matter here, and slow
    asked = list[bool]()

    def unpack(batch: Batch, few_lengths: bool) -> Batch:
        asked.append(few_lengths)
        return batch

    monkeypatch.setattr(feed, "unpack_batch", unpack)
    train(ToyTask(), config(compile=compiled, steps=2), ToyData(), str(tmp_path), 0)
    assert asked == [compiled, compiled]


def test_grids_show_the_average(tmp_path: Path) -> None:
    task, _ = train_dropping(tmp_path, sample_every=10)
    saved = load_file(tmp_path / "checkpoints/step-00000020/rank-00000.safetensors")
    assert len(task.shown) == 2
    assert all(torch.equal(value, saved[f"{name}|ema"]) for name, value in task.shown[-1].items())


def test_torn_log_line_is_dropped_on_resume(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, 16)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 17, "lo')
    assert [row["step"] for row in read_json_lines(str(tmp_path / "log.jsonl"))] == [4, 8, 12, 16]
    run(tmp_path)
    assert rows(tmp_path) == rows(whole)


def test_keeps_the_last_and_marks_hashes(whole: Path) -> None:
    folders = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert folders == ["step-00000018", "step-00000020"]
    marker = json.loads((whole / "checkpoints/step-00000020/commit.json").read_text())
    assert {entry["path"] for entry in marker["files"]} == {
        "rank-00000.safetensors",
        "buffers.safetensors",
        "state.json",
    }


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert resume.find_newest(str(tmp_path / "none")) is None


def test_accumulation_and_threads_change_only_rounding(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, accumulation=4, workers=0)
    for ours, theirs in zip(rows(tmp_path), rows(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_validation_uses_micro_batches_too(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation batch in one piece would need accumulation times the memory of training."""
    sizes, loss = set(), ToyTask.loss
    positions: list[int] = []

    def noted(self: ToyTask, model: Any, batch: Any, random: Any) -> Any:
        sizes.add((torch.is_grad_enabled(), len(batch["index"])))
        positions.extend([] if torch.is_grad_enabled() else batch["index"].tolist())
        return loss(self, model, batch, random)

    monkeypatch.setattr(ToyTask, "loss", noted)
    run(tmp_path, accumulation=4, validation_batches=3)
    assert sizes == {(True, 2), (False, 2)}
    assert positions == list(range(3 * 8))  # three batches of eight, each sample once
    run(tmp_path / "eight", accumulation=4)
    ours, theirs = (rows(folder)[-1]["validation_loss"] for folder in (tmp_path / "eight", whole))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"accumulation": 2}, {"precision": "bf16"}, {"optimizer": "adafactor"}], ids=str
)
def test_one_rank_without_zero_equals_deepspeed(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A raw key enables DeepSpeed, which changes nothing."""
    for name, raw in (("torch", {}), ("deepspeed", {"wall_clock_breakdown": False})):
        run(tmp_path / name, deepspeed=raw, **changes)
    assert rows(tmp_path / "torch") == rows(tmp_path / "deepspeed")
    ours, theirs = (load_file(tmp_path / name / "export/weights.safetensors") for name in ("torch", "deepspeed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_unknown_checkpoint_format_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 8)
    state = tmp_path / "checkpoints/step-00000006/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"format": 99}))
    data = state.read_bytes()
    marker = json.loads((state.parent / "commit.json").read_text())
    for entry in marker["files"]:
        if entry["path"] == "state.json":
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (state.parent / "commit.json").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="format 99"):
        run(tmp_path)


@pytest.mark.parametrize("stage", [0, 2])
def test_non_finite_steps_are_skipped_then_stop_the_run(tmp_path: Path, stage: int) -> None:
    with pytest.raises(NonFiniteError, match=r"3 updates in a row.*row\d"):
        train(ToyTask(), config(max_skipped=3, zero_stage=stage), ToyData(poison=tuple(range(50))), str(tmp_path), 0)


def test_training_survives_one_bad_sample(tmp_path: Path) -> None:
    result = train(ToyTask(), config(), ToyData(poison=(7,)), str(tmp_path), 0)
    # Position p of the stream is row order[p]: each epoch of 50 meets row 7 once, 160 samples thrice or four times.
    assert result["skipped"] in (3, 4)
    weights = load_file(tmp_path / "export/weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert all(row["loss"] is not None and row["loss"] < 10 for row in rows(tmp_path))


def test_events_come_in_order(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "checkpoint":
            assert resume.find_damage(event["path"]) is None
        seen.append((event["kind"], event.get("step") or event["row"]["step"]))

    train(ToyTask(), config(steps=8, overlap_save=0), ToyData(), str(tmp_path), 0, on_event=on_event)
    assert seen == [("log", 4), ("checkpoint", 6), ("log", 8), ("checkpoint", 8), ("done", 8)]


def test_remote_folder(whole: Path) -> None:
    folder = f"memory://{whole.name}"
    run(folder, 16)
    run(folder)
    assert rows(folder) == rows(whole)
