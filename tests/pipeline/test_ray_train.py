"""Training in Ray Train workers: results, restarts from a checkpoint after a death, failures told as what they are."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError

from dataprep import storage
from dataprep.schema import UserError
from pipeline import ray_train
from pipeline.ray_train import TrainingStopped, last_row, run_training
from train import guards

pytestmark = pytest.mark.usefixtures("local_ray")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def work(folder: str, mode: str) -> dict[str, Any]:
    """A stand-in for the training loop: sums ranks over the process group, or fails as ``mode`` says."""
    import torch
    import torch.distributed as dist

    once = Path(folder) / "died"
    if mode == "user":
        raise UserError("train.base.crop=3: take another")
    if mode == "bug":
        raise KeyError("missing")
    if mode == "leaves":
        (Path(folder) / f"up{dist.get_rank()}").write_text("")
        assert guards.STOP.wait(60)
        raise guards.Preempted(7, "somewhere")
    if mode == "dies" and dist.get_rank() == 1 and not once.exists():
        once.write_text("")
        os._exit(1)
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    return {"total": total.item(), "world": dist.get_world_size(), "threads": torch.get_num_threads()}


def train(tmp_path: Path, mode: str, retries: int = 1) -> dict[str, Any]:
    arguments = {"folder": str(tmp_path), "mode": mode}
    return run_training(work, arguments, str(tmp_path), 2, 10, "work", retries)


def test_two_ranks_in_one_group(tmp_path: Path) -> None:
    assert train(tmp_path, "fine") == {"total": 3.0, "world": 2, "threads": 1}


@pytest.mark.slow  # two groups of workers, each of which takes Ray ten seconds and more
def test_a_rank_that_dies_is_started_again(tmp_path: Path) -> None:
    result = train(tmp_path, "dies")
    assert (tmp_path / "died").exists()
    assert result == {"total": 3.0, "world": 2, "threads": 1}


@pytest.mark.slow
def test_a_notice_to_the_driver_reaches_the_ranks(tmp_path: Path) -> None:
    def tell() -> None:
        while not all((tmp_path / f"up{rank}").exists() for rank in (0, 1)):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=tell, daemon=True).start()
    with pytest.raises(TrainingStopped, match="stopped on notice at step 7"):
        train(tmp_path, "leaves")
    assert signal.getsignal(signal.SIGTERM) == before


class Attempts:
    """Stands for the groups of workers: each attempt makes a checkpoint or not, and fails with the next error."""

    def __init__(self, folder: Path, *script: tuple[bool, Exception | None]) -> None:
        self.folder, self.script, self.made = folder, list(script), 0

    def __call__(self, *_: Any) -> None:
        saves, error = self.script.pop(0)
        if saves:
            self.made += 1
            storage.write_json(f"{self.folder}/checkpoints/step-{self.made:08d}/commit.json", {})
        if error is not None:
            raise WorkerGroupError("failed", {1: RuntimeError("the other is gone"), 0: error})
        storage.write_json(f"{self.folder}/result.json", {"step": 10})


DEATH = RayActorError(error_msg="the worker died")


@pytest.mark.parametrize(
    ("script", "raised"),
    [
        ([(False, DEATH), (False, None)], None),
        ([(True, DEATH)] * 5 + [(False, None)], None),  # each time a checkpoint further: no budget is used up
        ([(False, DEATH), (True, DEATH), (False, DEATH), (False, None)], None),
        ([(False, DEATH), (False, DEATH)], r"gave up after 2 failures: rank 0: .*died \| rank 0"),
        ([(True, guards.NonFiniteError("step 3"))], r"gave up: rank 0: NonFiniteError: step 3"),
    ],
)
def test_retries_are_counted_without_a_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: list, raised: str | None
) -> None:
    attempts = Attempts(tmp_path, *script)
    monkeypatch.setattr(ray_train, "_attempt", attempts)
    if raised is None:
        assert train(tmp_path, "", retries=1) == {"step": 10}
    else:
        with pytest.raises(RuntimeError, match=raised):
            train(tmp_path, "", retries=1)
    assert attempts.script == []


def test_a_cluster_that_gives_nothing_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train, "RELEASE", 0.1)
    with pytest.raises(RuntimeError, match=r"2 CPUs are free 0 s after .* 3 ranks need as many"):
        ray_train._await_release(3)


def test_a_users_mistake_and_a_bug_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.base\.crop=3"):
        train(tmp_path, "user", retries=0)
    with pytest.raises(RuntimeError, match=r"rank [01]: KeyError"):
        train(tmp_path, "bug", retries=0)


def test_the_last_whole_row_of_a_log(tmp_path: Path) -> None:
    path = str(tmp_path / "log.jsonl")
    assert last_row(path) is None
    storage.write_bytes(path, b'{"step": 1}\n{"step": 2}\n{"st')
    assert last_row(path) == {"step": 2}
    storage.write_bytes(path, b'{"step": 1, "note": "long"}\n' * 9000 + b'{"step": 9001}\n')
    assert last_row(path) == {"step": 9001}
