"""Checkpoints: overlapped with training, pruned, refused if of another run, skipped if torn."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dataprep.io import storage
from dataprep.io.errors import UserError
from tests.helpers.toys import ToyData, ToyTask, config, rows, run
from train import checkpoint, resume
from train.loop import train


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed at step 16, with checkpoints of steps 6 and 12."""
    folder = tmp_path_factory.mktemp("stopped")
    run(folder, 16)
    return folder


def copy_run(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "run"))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("truncated", r"rank-00000.safetensors does not match its hash"),
        ("bit-flipped", r"rank-00000.safetensors does not match its hash"),
        ("state bit-flipped", r"state.json does not match its hash"),
        ("missing rank file", r"rank-00000.safetensors is missing"),
        ("marker without files", r"state.json is missing"),
        ("marker that names nothing", r"state.json does not match its hash"),
        ("marker cut off", r"commit.json is not readable"),
        ("marker of other files", r"commit.json names '../../x', which is no file of a checkpoint"),
        ("marker of fewer files", r"commit.json does not name rank-00001.safetensors"),
        ("no marker", r"no commit.json"),
    ],
)
def test_torn_checkpoints_are_logged_and_skipped(
    stopped: Path, tmp_path: Path, damage: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_run(stopped, tmp_path)
    newest = folder / "checkpoints/step-00000012"
    share, state, marker = (newest / name for name in ("rank-00000.safetensors", "state.json", "commit.json"))
    data = share.read_bytes()
    if damage == "truncated":
        share.write_bytes(data[: len(data) // 2])
    elif damage == "bit-flipped":
        share.write_bytes(data[:-100] + bytes([data[-100] ^ 4]) + data[-99:])
    elif damage == "state bit-flipped":
        state.write_text(state.read_text().replace('"updates": 12', '"updates": 13'))
    elif damage == "missing rank file":
        share.unlink()
    elif damage == "marker without files":
        for path in newest.iterdir():
            if path != marker:
                path.unlink()
    elif damage == "marker that names nothing":
        marker.write_text(json.dumps({"files": []}))
    elif damage == "marker of other files":
        marker.write_text(marker.read_text().replace("rank-00000.safetensors", "../../x"))
    elif damage == "marker of fewer files":
        state.write_text(state.read_text().replace('"world": 1', '"world": 2'))
        files = json.loads(marker.read_text())
        for entry in files["files"]:
            if entry["path"] == "state.json":
                entry["sha256"], entry["bytes"] = storage.sha256_file(str(state))
        marker.write_text(json.dumps(files))
    elif damage == "marker cut off":
        marker.write_text(marker.read_text()[:40])
    else:
        marker.unlink()
    with caplog.at_level(logging.WARNING):
        result = run(folder)
    assert result is not None and result["resumed_from"] == 6
    assert f"step-00000012 is torn ({why})" in caplog.text


def test_without_a_whole_checkpoint_training_starts_over(stopped: Path, tmp_path: Path) -> None:
    folder = copy_run(stopped, tmp_path)
    for marker in folder.glob("checkpoints/*/commit.json"):
        marker.unlink()
    result = run(folder)
    assert result is not None and result["resumed_from"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "another config: learning_rate was 0.001, now it is 0.5"),
        ({"batch_size": 4}, "another config: batch_size was 8, now it is 4"),
        ({"optimizer": "adafactor"}, "another config: optimizer was adamw, now it is adafactor"),
    ],
)
def test_another_config_is_refused(stopped: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(copy_run(stopped, tmp_path), **changes)


def test_another_seed_other_data_and_another_model_are_refused(stopped: Path, tmp_path: Path) -> None:
    class Wider(ToyTask):
        def build(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.Linear(9, 8))

    class Shorter(ToyData):
        def __init__(self) -> None:
            super().__init__()
            self.rows = 40

    folder = str(copy_run(stopped, tmp_path))
    with pytest.raises(UserError, match="seed was 0, now it is 1"):
        train(ToyTask(), config(), ToyData(), folder, 1)
    with pytest.raises(UserError, match="training samples was 50, now it is 40"):
        train(ToyTask(), config(), Shorter(), folder, 0)
    with pytest.raises(UserError, match=r"another model: 0.weight was \[33, 8\], now it is \[9, 8\]"):
        train(Wider(), config(), ToyData(), folder, 0)


def test_resumable_settings_may_differ(stopped: Path, tmp_path: Path) -> None:
    folder = copy_run(stopped, tmp_path)
    result = run(
        folder, steps=24, decay_steps=20, zero_stage=3, offload="optimizer", accumulation=2, workers=0, log_every=2
    )
    assert result is not None and (result["resumed_from"], result["step"]) == (12, 24)


def test_every_nth_checkpoint_is_kept(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_every=2, keep_last=2, keep_every=8)
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [8, 16, 18, 20]


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of step 6 waits until step 10 is logged: without overlap this would never end."""
    logged, write = threading.Event(), checkpoint._write_tensors
    seen: list[tuple[str, int]] = []

    def slow(*arguments: Any) -> dict[str, Any]:
        assert logged.wait(60)
        return write(*arguments)

    def on_event(event: dict[str, Any]) -> None:
        seen.append((event["kind"], event.get("step") or event["row"]["step"]))
        if seen[-1] == ("log", 10):
            assert resume.find_newest(str(tmp_path / "checkpoints")) is None
            logged.set()

    monkeypatch.setattr(checkpoint, "_write_tensors", slow)
    train(ToyTask(), config(log_every=2), ToyData(), str(tmp_path), 0, on_event=on_event)
    assert seen.index(("checkpoint", 6)) > seen.index(("log", 10))
    assert [step for kind, step in seen if kind == "checkpoint"] == [6, 12, 18, 20]
    monkeypatch.undo()
    run(tmp_path.parent / "plain", overlap_save=0, log_every=2)
    ours = [{k: v for k, v in row.items() if "validation" not in k} for row in rows(tmp_path)]
    theirs = [{k: v for k, v in row.items() if "validation" not in k} for row in rows(tmp_path.parent / "plain")]
    assert ours == theirs


def test_training_waits_for_a_checkpoint_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of step 6 ends only after step 9 is logged; three updates may overlap it, so step 10 is not."""
    logged, write, beside = threading.Event(), checkpoint._write_tensors, list[int]()
    seen: list[int] = []

    def slow(*arguments: Any) -> dict[str, Any]:
        assert logged.wait(60)
        time.sleep(0.3)  # time in which training could continue
        beside.append(seen[-1])
        return write(*arguments)

    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "log":
            seen.append(event["row"]["step"])
        if event["kind"] == "log" and seen[-1] >= 9:
            logged.set()

    monkeypatch.setattr(checkpoint, "_write_tensors", slow)
    train(ToyTask(), config(log_every=1, overlap_save=3, steps=12), ToyData(), str(tmp_path), 0, on_event=on_event)
    assert beside[0] == 9 and seen[-1] == 12


@pytest.mark.parametrize("overlap", [0, 100])
def test_a_checkpoint_that_cannot_be_written_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: int
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(RuntimeError, match=r"could not be written: rank 0: OSError: .*No space left"):
        run(tmp_path, overlap_save=overlap)


def test_checkpoints_on_an_object_store(tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}-store"
    run(folder, 16)
    assert resume.find_newest(f"{folder}/checkpoints") == f"{folder}/checkpoints/step-00000012"
    result = run(folder)
    assert result is not None and result["resumed_from"] == 12
    assert storage.exists(f"{folder}/export/weights.safetensors")
