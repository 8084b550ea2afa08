"""The order and concurrency in which stages run."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dataprep.io.errors import UserError
from dataprep.io.signals import SHUTDOWN
from pipeline.execution import scheduler
from pipeline.execution.scheduler import Scheduler
from pipeline.runtime.admission import ClusterShares
from pipeline.runtime.config import ClusterConfig
from pipeline.stages.base import Placement

GRAPH: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("a",), "d": ("a",), "e": ("b", "c", "d")}


class RecordedStages:
    """A graph of stages that record when they run; those in ``failing`` fail.

    ``concurrent``: stages with one input finish only once this many of them run at the same time.
    """

    def __init__(self, failing: tuple[str, ...] = (), concurrent: int = 0) -> None:
        self.items: list[Any] = [
            SimpleNamespace(stage=SimpleNamespace(name=name, inputs=inputs, placement=Placement.DRIVER), artifact=None)
            for name, inputs in GRAPH.items()
        ]
        self.failing = failing
        self.order: list[str] = []
        self.threads: set[str] = set()
        self.barrier = threading.Barrier(concurrent) if concurrent else None

    def run_stage(self, item: Any, done: dict[str, Any], shares: ClusterShares) -> Any:
        name = item.stage.name
        assert set(item.stage.inputs) <= set(done)
        self.threads.add(threading.current_thread().name)
        self.order.append(name)
        if self.barrier and len(item.stage.inputs) == 1:
            self.barrier.wait(10)
        if name in self.failing:
            raise UserError(f"{name}: bad")
        return f"artifact of {name}"


def run_scheduler(stages: RecordedStages, monkeypatch: pytest.MonkeyPatch, cpus: int) -> dict[str, Any]:
    monkeypatch.setattr(scheduler, "connect_ray", lambda config: None)
    monkeypatch.setattr(scheduler, "get_cluster_capacity", lambda resource: float(cpus))
    monkeypatch.setattr(scheduler, "ADMISSION_INTERVAL", 0.05)
    return dict(Scheduler(stages.items, stages.run_stage, ClusterConfig(cpus=cpus)).run())


def test_stages_run_concurrently_if_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = RecordedStages(concurrent=3)
    done = run_scheduler(stages, monkeypatch, 16)
    assert done == {name: f"artifact of {name}" for name in GRAPH}
    assert stages.order[0] == "a" and stages.order[-1] == "e"


def test_two_cpus_run_the_stages_in_order_in_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = RecordedStages()
    run_scheduler(stages, monkeypatch, 2)
    assert stages.order == list(GRAPH) and stages.threads == {threading.current_thread().name}


def test_finished_stages_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = RecordedStages()
    for item in stages.items[:3]:
        item.artifact = "from before"
    assert run_scheduler(stages, monkeypatch, 2)["b"] == "from before"
    assert stages.order == ["d", "e"]


def test_the_first_error_is_raised_once_running_stages_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = RecordedStages(failing=("c",), concurrent=3)
    with pytest.raises(UserError, match="c: bad"):
        run_scheduler(stages, monkeypatch, 16)
    assert sorted(stages.order) == ["a", "b", "c", "d"]
    assert not SHUTDOWN.is_set()
