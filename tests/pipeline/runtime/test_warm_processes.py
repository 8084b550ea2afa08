"""Which processes are kept, for whom, and for how long."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from pipeline.runtime import warm_processes, worker_process
from pipeline.runtime.resources import WorkerNeed
from pipeline.runtime.warm_processes import ProcessSpec, WarmProcesses
from pipeline.runtime.worker_process import WorkerProcess
from train import engine
from train.config import TrainConfig

ONE, TWO = ProcessSpec(WorkerNeed(1)), ProcessSpec(WorkerNeed(2))


class FakeRay:
    """Counts what is started and killed; ``node`` changes with the Ray session."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[Any] = []
        self.killed: list[Any] = []
        self.node = "node"
        monkeypatch.setattr(warm_processes, "ray", self)
        monkeypatch.setattr(warm_processes, "start_process", self.start)

    def start(self, spec: ProcessSpec) -> Any:
        self.started.append(Mock())
        return self.started[-1]

    def kill(self, process: Any) -> None:
        self.killed.append(process)

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: self.node)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay(monkeypatch)


def test_a_kept_process_serves_the_next_of_its_spec_with_its_worker_freed(fake: FakeRay) -> None:
    warm = WarmProcesses()
    process = warm.acquire(ONE)
    warm.keep(ONE, process)
    process.clear.remote.assert_called_once_with()
    assert warm.acquire(ProcessSpec(WorkerNeed(1))) is process
    assert warm.acquire(ONE) is not process


def test_processes_of_other_specs_end_when_one_is_started(fake: FakeRay) -> None:
    warm = WarmProcesses()
    process = warm.acquire(ONE)
    warm.keep(ONE, process)
    assert warm.acquire(TWO) is not process
    assert fake.killed == [process]


@pytest.mark.parametrize(
    "other",
    [ProcessSpec(WorkerNeed(1, gpus=1)), ProcessSpec(WorkerNeed(1), threads=2), ProcessSpec(WorkerNeed(1, memory=5))],
)
def test_specs_differ_by_devices_threads_and_memory(other: ProcessSpec) -> None:
    assert other.key != ONE.key
    assert ONE.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_idle_processes_end_after_a_while(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_processes, "MAX_IDLE_SECONDS", 0.01)
    warm = WarmProcesses()
    process = warm.acquire(ONE)
    warm.keep(ONE, process)
    assert warm.timer is not None
    warm.timer.join(10)
    assert fake.killed == [process] and warm.idle == {}


def test_processes_of_an_earlier_ray_session_are_forgotten(fake: FakeRay) -> None:
    warm = WarmProcesses()
    warm.keep(ONE, warm.acquire(ONE))
    fake.node = "another"
    warm.acquire(ONE)
    assert len(fake.started) == 2 and fake.killed == []


def test_none_is_kept_while_several_stages_run(fake: FakeRay) -> None:
    warm = WarmProcesses()
    first, second = warm.acquire(ONE), warm.acquire(ONE)
    warm.keep(ONE, first)
    assert warm.has(ONE, 1) and not warm.has(ONE, 2) and not warm.has(TWO, 1)
    warm.is_shared = True
    warm.keep(ONE, second)
    assert fake.killed == [second] and not warm.has(ONE, 2)


def test_processes_with_a_gpu_get_its_settings_and_the_node_may_set_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = ProcessSpec(WorkerNeed(16, 1), 16)
    assert gpu.default_environment() == {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
    }
    assert ONE.default_environment() == {}
    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setattr(os, "environ", {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"})
    WorkerProcess(gpu.environment(), [], gpu.default_environment())
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "1"  # the node's own
    assert os.environ["OMP_NUM_THREADS"] == "16"  # ours: Ray sets 1 everywhere


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_rank_has_the_variables_for_repeatable_results_before_ranks_connect(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("NCCL_ALGO", None)
    seen: list[str | None] = []

    def connect(_: float) -> tuple[int, int]:
        seen.append(os.environ.get("NCCL_ALGO"))
        return 0, 1

    monkeypatch.setattr(engine, "init_process_group", connect)
    monkeypatch.setattr(engine, "leave_process_group", lambda: None)
    arguments = {"config": TrainConfig(deterministic=deterministic)}
    monkeypatch.setattr(worker_process, "ray", SimpleNamespace(get=lambda _: (lambda config: {"step": 1}, arguments)))
    assert WorkerProcess({}, []).run_rank([None], {"RANK": "0"}, torch.get_num_threads(), 10) == {"step": 1}
    assert seen == ["Ring" if deterministic else None]


def test_a_process_computes_with_the_threads_that_it_was_given() -> None:
    environment = os.environ | ProcessSpec(WorkerNeed(1), threads=1).environment()
    count = "import cv2, torch; print(cv2.getNumThreads(), torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", count], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
