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
from pipeline.runtime.group_size import GroupPlan
from pipeline.runtime.resources import WorkerNeed
from pipeline.runtime.shard_stream import ShardStream, StageStreams
from pipeline.stages.base import Placement

GRAPH: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("a",), "d": ("a",), "e": ("b", "c", "d")}
STREAMED = {"b": ("a",), "c": ("a",)}


class RecordedStages:
    """A graph of stages that record when they run; those in ``failing`` fail.

    ``concurrent``: stages with one input finish only once this many of them run at the same time.
    """

    def __init__(self, failing: tuple[str, ...] = (), concurrent: int = 0) -> None:
        self.items: list[Any] = [
            SimpleNamespace(
                stage=SimpleNamespace(
                    name=name,
                    inputs=inputs,
                    placement=Placement.DRIVER,
                    type=SimpleNamespace(streams=STREAMED.get(name, ())),
                ),
                artifact=None,
            )
            for name, inputs in GRAPH.items()
        ]
        self.failing = failing
        self.order: list[str] = []
        self.threads: set[str] = set()
        self.barrier = threading.Barrier(concurrent) if concurrent else None
        self.streams: dict[str, StageStreams] = {}

    def run_stage(self, item: Any, done: dict[str, Any], shares: ClusterShares, streams: StageStreams) -> Any:
        name = item.stage.name
        assert set(item.stage.inputs) == {*item.stage.inputs} & {*done, *streams.inputs}
        self.streams[name] = streams
        self.threads.add(threading.current_thread().name)
        self.order.append(name)
        if self.barrier and len(item.stage.inputs) == 1:
            self.barrier.wait(10)
        if name in self.failing:
            raise UserError(f"{name}: bad")
        return f"artifact of {name}"


def run_scheduler(
    stages: RecordedStages,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    stream: bool = False,
    cluster: dict[str, Any] | None = None,
) -> dict[str, Any]:
    monkeypatch.setattr(scheduler, "connect_ray", lambda config: None)
    monkeypatch.setattr(scheduler, "get_cluster_capacity", lambda resource: float(cpus))
    monkeypatch.setattr(scheduler, "ADMISSION_INTERVAL", 0.05)
    monkeypatch.setattr(ShardStream, "close", lambda *_: None)  # the artifacts are strings
    return dict(
        Scheduler(stages.items, stages.run_stage, ClusterConfig(cpus=cpus, stream=stream, **(cluster or {}))).run()
    )


def test_stages_run_concurrently_if_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = RecordedStages(concurrent=3)
    done = run_scheduler(stages, monkeypatch, 16)
    assert done == {name: f"artifact of {name}" for name in GRAPH}
    assert stages.order[0] == "a" and stages.order[-1] == "e"


def test_two_cpus_run_the_stages_in_order_in_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = RecordedStages()
    run_scheduler(stages, monkeypatch, 2)
    assert stages.order == list(GRAPH) and stages.threads == {threading.current_thread().name}


@pytest.mark.parametrize(
    ("cluster", "concurrent"),
    [
        ({}, False),
        ({"ranks": 2}, False),
        ({"ranks": 1}, True),
        ({"stages": {"c": {"ranks": 1}}}, True),
        ({"ranks": 1, "stages": {name: {"ranks": 2} for name in "bcd"}}, False),
    ],
)
def test_a_small_machine_runs_trainings_of_one_rank_side_by_side(
    cluster: dict[str, Any], concurrent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_SEQUENTIAL_CPUS", 16)
    monkeypatch.setattr(Scheduler, "_plan_group", lambda *_: GroupPlan(1, WorkerNeed(cpus=1), 8))
    stages = RecordedStages(concurrent=3 if concurrent else 0)
    for item in stages.items[1:4]:
        item.stage.placement = Placement.GROUP
    run_scheduler(stages, monkeypatch, 16, cluster=cluster)
    assert stages.order[0] == "a" and stages.order[-1] == "e"
    assert concurrent != (stages.order == list(GRAPH) and stages.threads == {threading.current_thread().name})


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


class MeetingStages(RecordedStages):
    """Stages of which ``a``, ``b`` and ``c`` end only once all three run."""

    meeting = threading.Barrier(1)

    def run_stage(self, item: Any, done: dict[str, Any], shares: ClusterShares, streams: StageStreams) -> Any:
        made = super().run_stage(item, done, shares, streams)
        if item.stage.name in "abc":
            self.meeting.wait(60)
        return made


@pytest.mark.parametrize("cpus", [2, 16])
def test_stages_start_while_the_input_that_they_stream_from_runs(cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = MeetingStages()
    stages.meeting = threading.Barrier(3)
    monkeypatch.setattr(scheduler.ClusterShares, "admits_one", lambda *_: True)
    assert run_scheduler(stages, monkeypatch, cpus, stream=True) == {name: f"artifact of {name}" for name in GRAPH}
    assert sorted(stages.order[:3]) == ["a", "b", "c"] and stages.order[3:] == ["d", "e"]
    output = stages.streams["a"].output
    assert output is not None
    assert all(stages.streams[name] == StageStreams({"a": output}) for name in "bc")
    assert not stages.streams["d"].active  # not declared: it got the finished artifact


def test_a_stage_that_others_do_not_stream_from_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two CPUs a stage that is not ready when its input starts could not stream from it."""
    stages = MeetingStages()
    stages.meeting = threading.Barrier(3)
    model: Any = SimpleNamespace(
        stage=SimpleNamespace(name="model", inputs=(), placement=Placement.DRIVER, type=SimpleNamespace(streams=())),
        artifact=None,
    )
    stages.items.append(model)
    stages.items[2].stage.inputs = ("a", "model")
    monkeypatch.setattr(scheduler.ClusterShares, "admits_one", lambda *_: True)
    run_scheduler(stages, monkeypatch, 2, stream=True)
    assert stages.order[0] == "model" and sorted(stages.order[1:4]) == ["a", "b", "c"]


def test_a_stage_whose_worker_does_not_fit_beside_the_others_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = RecordedStages()
    run_scheduler(stages, monkeypatch, 1, stream=True)  # each stage in the driver counts as one CPU
    assert stages.order == list(GRAPH)
    assert not any(streams.inputs for streams in stages.streams.values())


def test_the_error_of_an_input_is_raised_and_ends_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = MeetingStages(failing=("a",))
    monkeypatch.setattr(scheduler.ClusterShares, "admits_one", lambda *_: True)
    with pytest.raises(UserError, match="a: bad"):
        run_scheduler(stages, monkeypatch, 2, stream=True)
    output = stages.streams["a"].output
    assert output is not None and output.failed
    assert not {"d", "e"} & set(stages.order)
