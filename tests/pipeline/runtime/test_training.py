"""Training on a group of ranks: results, restarts, shutdown, and errors of the right kind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.exceptions import RayActorError

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.signals import SHUTDOWN, shutdown_on_sigterm
from pipeline.runtime import group_size, training
from pipeline.runtime.group_size import GroupPlan
from pipeline.runtime.rank_group import GroupFailed, GroupNotStarted
from pipeline.runtime.resources import WorkerNeed
from pipeline.runtime.training import TrainingStopped, run_training
from pipeline.runtime.warm_processes import WARM, ProcessSpec
from train import errors

pytestmark = pytest.mark.usefixtures("local_ray")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def run_rank(folder: str, mode: str) -> dict[str, Any]:
    """Replaces the training loop: sums the ranks over the process group, or fails as ``mode`` says."""
    import torch
    import torch.distributed as dist

    from dataprep.io.signals import SHUTDOWN  # a global of this module would be pickled, and an Event cannot be

    once = Path(folder) / "died"
    if mode == "user":
        raise UserError("train.base.crop=3: choose another")
    if mode == "bug":
        raise KeyError("missing")
    if mode == "shutdown":
        (Path(folder) / f"up{dist.get_rank()}").write_text("")
        assert SHUTDOWN.wait(60)
        if (slower := Path(folder) / "slower").exists():
            while slower.exists():
                time.sleep(0.05)
        raise errors.Preempted(7, "somewhere")
    if mode == "dies" and dist.get_rank() == 1 and not once.exists():
        once.write_text("")
        os._exit(1)
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    if mode == "fine":
        Path(folder, f"pid{dist.get_rank()}").write_text(str(os.getpid()))
    return {"total": total.item(), "world": dist.get_world_size(), "threads": torch.get_num_threads()}


def group(ranks: int) -> GroupPlan:
    return GroupPlan(ranks, WorkerNeed(1.0), 12)


def train(tmp_path: Path, mode: str, retries: int = 1, ranks: int = 2) -> dict[str, Any]:
    arguments = {"folder": str(tmp_path), "mode": mode}
    return run_training(run_rank, arguments, str(tmp_path), group(ranks), 10, "work", retries)


def test_two_ranks_form_one_group(tmp_path: Path) -> None:
    assert train(tmp_path, "fine") == {"total": 3.0, "world": 2, "threads": 1}


def test_the_next_training_runs_in_the_same_processes(tmp_path: Path) -> None:
    pids = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        train(folder, "fine")
        pids.append({(folder / f"pid{rank}").read_text() for rank in (0, 1)})
    assert pids[0] == pids[1] and len(pids[0]) == 2
    process = WARM.acquire(ProcessSpec(WorkerNeed(1.0)))
    ranks = ray.get(
        process.__ray_call__.remote(lambda self: [name for name in ("RANK", "WORLD_SIZE") if name in os.environ])
    )
    assert ranks == []  # what runs there next is no rank
    WARM.keep(ProcessSpec(WorkerNeed(1.0)), process)


def test_a_process_that_died_while_idle_is_replaced(tmp_path: Path) -> None:
    train(tmp_path, "fine")
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    assert train(tmp_path, "fine", retries=0)["total"] == 3.0


def test_a_dead_rank_restarts_the_group(tmp_path: Path) -> None:
    result = train(tmp_path, "dies")
    assert (tmp_path / "died").exists()
    assert result == {"total": 3.0, "world": 2, "threads": 1}


def test_sigterm_to_the_driver_reaches_the_ranks(tmp_path: Path) -> None:
    def send_sigterm() -> None:
        while not all((tmp_path / f"up{rank}").exists() for rank in (0, 1)):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send_sigterm, daemon=True).start()
    with pytest.raises(TrainingStopped, match="at step 7"):
        train(tmp_path, "shutdown")
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_stops_trainings_that_run_side_by_side(tmp_path: Path) -> None:
    """One of them saves its checkpoint later, when the other has long stopped."""
    folders = [tmp_path / name for name in ("quick", "late")]
    for folder in folders:
        folder.mkdir()
    (folders[1] / "slower").write_text("")
    with shutdown_on_sigterm(), ThreadPoolExecutor(2) as pool:
        quick, late = (pool.submit(train, folder, "shutdown", 1, 1) for folder in folders)
        while not all((folder / "up0").exists() for folder in folders):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TrainingStopped, match="at step 7"):
            quick.result(60)
        (folders[1] / "slower").unlink()
        with pytest.raises(TrainingStopped, match="at step 7"):
            late.result(60)
    assert not SHUTDOWN.is_set()


class ScriptedGroups:
    """Replaces `_run_group`: each attempt saves a checkpoint or not, and fails with the scripted error."""

    def __init__(self, folder: Path, *script: tuple[bool, Exception | None]) -> None:
        self.folder, self.script, self.saved = folder, list(script), 0

    def __call__(self, *_: Any) -> dict[str, Any]:
        saves, error = self.script.pop(0)
        if saves:
            self.saved += 1
            storage.write_json(f"{self.folder}/checkpoints/step-{self.saved:08d}/commit.json", {})
        if error is not None:
            raise GroupFailed({1: RuntimeError("the other is gone"), 0: error})
        return {"step": 10}


DEATH = RayActorError(error_msg="the worker died")


@pytest.mark.parametrize(
    ("script", "raised"),
    [
        ([(False, DEATH), (False, None)], None),
        ([(True, DEATH)] * 5 + [(False, None)], None),  # a new checkpoint each time resets the retries
        ([(False, DEATH), (True, DEATH), (False, DEATH), (False, None)], None),
        ([(False, DEATH), (False, DEATH)], r"gave up after 2 failures: rank 0: .*died \| rank 0"),
        ([(True, errors.NonFiniteError("step 3"))], r"gave up: rank 0: NonFiniteError: step 3"),
    ],
)
def test_a_new_checkpoint_resets_the_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: list[tuple[bool, Exception | None]], raised: str | None
) -> None:
    attempts = ScriptedGroups(tmp_path, *script)
    monkeypatch.setattr(training, "_run_group", attempts)
    monkeypatch.setattr(training, "_start_group", lambda *_: None)
    if raised is None:
        assert train(tmp_path, "", retries=1) == {"step": 10}
    else:
        with pytest.raises(RuntimeError, match=raised):
            train(tmp_path, "", retries=1)
    assert attempts.script == []


def test_ranks_that_do_not_fit_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "START_TIMEOUT", 2.0)
    WARM.close()
    with pytest.raises(RuntimeError, match=r"did not start within 2 s.*lower cluster.ranks"):
        run_training(run_rank, {"folder": str(tmp_path), "mode": "fine"}, str(tmp_path), group(3), 10, "work", 0)


def test_user_errors_are_told_apart_from_bugs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.base\.crop=3"):
        train(tmp_path, "user", retries=0)
    with pytest.raises(RuntimeError, match=r"rank [01]: KeyError"):
        train(tmp_path, "bug", retries=0)


class ScriptedStarts:
    """Replaces `RankGroup`: groups of the sizes in ``fits`` start."""

    def __init__(self, *fits: int) -> None:
        self.fits, self.asked = fits, list[tuple[int, float]]()

    def __call__(self, ranks: int, spec: Any, placement: str, timeout: float) -> Any:
        self.asked.append((ranks, timeout))
        if ranks not in self.fits:
            raise GroupNotStarted("not enough")
        return ranks


@pytest.mark.parametrize(
    ("fits", "nodes", "asked", "started"),
    [
        ([8], 8, [(8, 5.0)], 8),
        ([4], 7, [(8, 5.0), (4, 5.0)], 4),  # 7 fit, 4 divide the batch
        ([], 0, [(8, 5.0), (8, 1800.0)], None),  # nothing fits: waits for the whole group
    ],
)
def test_a_group_that_lost_machines_goes_on_with_fewer_ranks(
    fits: list[int], nodes: int, asked: list[tuple[int, float]], started: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = ScriptedStarts(*fits)
    monkeypatch.setattr(training, "RankGroup", starts)
    monkeypatch.setattr(training, "can_grow", lambda: True)
    monkeypatch.setattr(group_size, "count_fitting_workers", lambda need: nodes)
    plan = GroupPlan(8, WorkerNeed(1.0, 1.0), 16)
    if started is None:
        with pytest.raises(GroupNotStarted):
            training._start_group(plan, "train.base", 5.0)
    else:
        assert training._start_group(plan, "train.base", 5.0) == started
    assert starts.asked == asked


def test_the_first_group_is_whole_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = ScriptedStarts(4)
    monkeypatch.setattr(training, "RankGroup", starts)
    monkeypatch.setattr(training, "can_grow", lambda: True)
    with pytest.raises(GroupNotStarted):
        training._start_group(GroupPlan(8, WorkerNeed(1.0, 1.0), 16), "train.base", None)
    assert starts.asked == [(8, 1800.0)]
