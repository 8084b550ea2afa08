"""A longer training begins from the checkpoint of the shorter one, wherever that is the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dataprep.io import storage
from pipeline.stages.base import StageConfig
from pipeline.stages.continued_training import Beginning, UpdateRule, begin_training, find_beginning, find_update_rule
from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.markers import Output
from pipeline.store.run import Run
from tests.helpers import toys
from train.config import TrainConfig


class ToyStage(StageConfig):
    """A stage that trains the toy."""

    train: TrainConfig | None
    seed: int = 0


PARTS = {"stage": "train.toy", "inputs": {"pack": "f"}, "sources": {}, "code": {"a:b": "1"}, "versions": {"torch": "2"}}


def make_rule(parts: dict[str, Any] = PARTS, seed: int = 0, sha256: str = "s", **changes: Any) -> UpdateRule:
    output = Output("00000.parquet", 1, sha256, 1)
    pack = Artifact("pack", Manifest("pack", "f", {}, {}, [output], {}, 1.0, {}))
    rule = find_update_rule(ToyStage(train=toys.config(**changes), seed=seed), parts, {"pack": pack})
    assert rule is not None
    return rule


def train_stage(run: Run, name: str, stop: int | None = None, **changes: Any) -> Beginning | None:
    """Trains the toy in the stage folder ``name`` as the executor does, killed at ``stop``."""
    folder = run.stage_folder("train.toy", name)
    beginning = begin_training(run, "train.toy", folder, make_rule(**changes))
    toys.run(folder, stop, **changes)
    return beginning


def read_weights(run: Run, name: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run.stage_folder("train.toy", name)) / "export/weights.safetensors")


CONSTANT: dict[str, Any] = {"schedule": "constant"}


@pytest.mark.parametrize("stop", [None, 16], ids=["finished", "killed"])
def test_a_longer_training_goes_on_and_equals_one_from_the_start(tmp_path: Path, stop: int | None) -> None:
    run, other = Run(str(tmp_path / "run")), Run(str(tmp_path / "other"))
    assert train_stage(other, "whole", steps=30, **CONSTANT) is None
    assert train_stage(run, "short", stop, **CONSTANT) is None
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    beginning = train_stage(run, "long", steps=30, log_every=2, **CONSTANT)
    step = 12 if stop else 20
    assert beginning == Beginning(run.stage_folder("train.toy", "short"), step)
    assert beginning.describe() == f"goes on from step {step} of short"
    ours, theirs = read_weights(run, "long"), read_weights(other, "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    log = toys.rows(run.stage_folder("train.toy", "long"))
    assert [row["step"] for row in log] == [4, 8, 12, *(() if stop else (16, 20)), *range(step + 2, 32, 2)]
    assert {path: path.read_bytes() for path in before} == before  # the earlier artifact is as it was


def test_a_kill_while_checkpoints_are_linked_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(str(tmp_path))
    train_stage(run, "short", **CONSTANT)
    duplicate, calls = storage.duplicate, list[str]()

    def killed(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) > 3:
            raise KeyboardInterrupt
        duplicate(source, target)

    monkeypatch.setattr(storage, "duplicate", killed)
    rule = make_rule(steps=30, **CONSTANT)
    with pytest.raises(KeyboardInterrupt):
        begin_training(run, "train.toy", run.stage_folder("train.toy", "long"), rule)
    monkeypatch.setattr(storage, "duplicate", duplicate)
    beginning = train_stage(run, "long", steps=30, **CONSTANT)
    assert beginning is not None and beginning.step == 20
    assert find_beginning(run, "train.toy", run.stage_folder("train.toy", "long"), rule) is None  # has its own now


def test_a_schedule_over_all_steps_starts_again_and_says_why(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    train_stage(run, "short")
    beginning = train_stage(run, "long", steps=30)
    assert beginning is not None and beginning.describe() == (
        "starts at step 0: its cosine ends at step 30, that of the earlier training at 20; with decay_steps=20 it goes "
        "on from step 20"
    )
    beginning = train_stage(run, "more", steps=26, decay_steps=20)
    assert beginning is not None and beginning.describe() == "goes on from step 20 of short"


def test_a_shorter_training_ends_with_its_own_validation(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    train_stage(run, "long", keep_last=9, **CONSTANT)
    beginning = train_stage(run, "short", steps=18, keep_last=9, **CONSTANT)
    assert beginning is not None and beginning.step == 12
    log = toys.rows(run.stage_folder("train.toy", "short"))
    assert log[-1]["step"] == 18 and "validation_loss" in log[-1]
    beginning = train_stage(run, "logged", keep_last=8, **CONSTANT)  # the same length
    assert beginning is not None and beginning.step == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"sha256": "t"},  # rewritten inputs
        {"learning_rate": 0.5},
        {"warmup_steps": 3},
        {"batch_size": 16},
        *({"parts": PARTS | {name: {"x": "y"}}} for name in ("inputs", "sources", "code", "versions")),
    ],
    ids=str,
)
def test_another_training_starts_at_step_0(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = Run(str(tmp_path))
    folder = Path(run.stage_folder("train.toy", "short"))
    (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000020" / "commit.json").write_text("{}")
    begin_training(run, "train.toy", str(folder), make_rule(**CONSTANT))
    new = run.stage_folder("train.toy", "new")
    same = find_beginning(run, "train.toy", new, make_rule(steps=30, accumulation=2, zero_stage=1, **CONSTANT))
    assert same is not None and same.step == 20
    assert find_beginning(run, "train.toy", new, make_rule(steps=30, **CONSTANT, **changes)) is None


def test_a_stage_without_training_has_no_rule() -> None:
    assert find_update_rule(ToyStage(train=None), PARTS, {}) is None
