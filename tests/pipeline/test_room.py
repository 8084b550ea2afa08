"""What workers need, where they fit, which stages run side by side, and in which order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import RayActorError, RayTaskError

from dataprep.schema import UserError
from pipeline import placement, pool, schedule, shards
from pipeline.config import ClusterConfig
from pipeline.notice import LEAVE
from pipeline.placement import Need, actor_need, rank_need, room_for
from pipeline.resources import StageResources
from pipeline.room import Claim, Room
from pipeline.schedule import Schedule
from pipeline.stages import Work
from pipeline.store import Shard

Nodes = list[dict[str, float]]
CPU_NODE, GPU_NODE = {"CPU": 32.0, "memory": 128e9}, {"CPU": 96.0, "GPU": 8.0, "memory": 1e12}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the cluster one of these nodes, which may grow to those limits."""

    def make(*nodes: dict[str, float], limits: dict[str, float] | None = None) -> None:
        monkeypatch.setattr(placement, "nodes", lambda: list(nodes))
        found = SimpleNamespace(get_max_resources_from_cluster_config=lambda: limits)
        monkeypatch.setattr(placement, "state", found)

    return make


def test_models_get_gpus_where_there_are_any_or_could_be(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 2.0})
    assert actor_need(StageResources(), True) == Need(1.0, 0.0)
    cluster(CPU_NODE, GPU_NODE)
    assert actor_need(StageResources(), True) == Need(1.0, 1.0)
    assert actor_need(StageResources(), False) == Need(1.0, 0.0)
    assert actor_need(StageResources(num_gpus=0.25, num_cpus=3, memory_gb=2), True) == Need(3, 0.25, 2 << 30)
    cluster({"CPU": 0.0}, limits={"CPU": 96, "GPU": 8})  # a head alone, the GPUs are still to be started
    assert actor_need(StageResources(), True).gpus == 1


@pytest.mark.parametrize(
    ("nodes", "ranks", "cpus", "gpus"),
    [
        ([{"CPU": 2.0}], 2, 1, 0),
        ([{"CPU": 8.0}], 2, 4, 0),
        ([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], 2, 1, 0),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 3, 1, 0),  # two of two CPUs and one of three would leave a rank without a place
        ([CPU_NODE, GPU_NODE], 8, 12, 1),  # the last GPU of the node still has its CPUs
        ([CPU_NODE, GPU_NODE], 16, 8, 0),  # not as many GPUs as ranks
    ],
)
def test_a_rank_takes_an_even_part(
    nodes: Nodes, ranks: int, cpus: int, gpus: int, cluster: Callable[..., None]
) -> None:
    cluster(*nodes)
    need = rank_need(StageResources(), ranks)
    assert (need.cpus, need.gpus) == (cpus, gpus)
    assert room_for(need) >= ranks


def test_room_is_counted_node_by_node(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 1.0, "spot": 1.0})
    assert room_for(Need(2)) == 2
    assert room_for(Need(1, 0.5)) == 2
    assert room_for(Need(1, custom={"spot": 0.01})) == 1
    assert room_for(Need(0.1)) == 70
    assert Need(0.5, 0.0, 1 << 30, {"spot": 1}).options() == {
        "num_cpus": 0.5,
        "num_gpus": 0.0,
        "memory": 1 << 30,
        "resources": {"spot": 1},
    }


# ------------------------------------------------------------------------------------------------ side by side

GROUP, POOL, DRIVER = Claim(Need(1, 1), ranks=8), Claim(Need(1)), Claim(Need(), ranks=1)


def test_groups_hold_theirs_and_pools_share_the_rest() -> None:
    room = Room({"CPU": 64, "GPU": 16}.__getitem__)
    for name, claim in [("train.base", GROUP), ("train.sr", GROUP), ("annotate", POOL)]:
        assert room.admits(claim)
        room.enter(name, claim)
    assert not room.admits(GROUP)  # no third eight GPUs
    assert room.workers("annotate", Need(1)) == 48
    room.enter("score", POOL)
    assert room.workers("annotate", Need(1)) == 24 and room.workers("score", Need(2)) == 12
    for name in ("train.base", "train.sr", "score"):
        room.leave(name)
    assert room.workers("annotate", Need(1)) is None


@pytest.mark.parametrize("first", [POOL, Claim(Need(1), ranks=2)])
def test_on_two_cpus_one_stage_follows_another(first: Claim) -> None:
    room = Room({"CPU": 2, "GPU": 0}.__getitem__)
    assert room.admits(Claim(Need(1), ranks=9))  # alone, whatever it asks for: the error is Ray's to tell
    room.enter("first", first)
    assert not any(room.admits(claim) for claim in (POOL, Claim(Need(1), ranks=2), DRIVER))


class Stages:
    """A graph of stages that note when they run; those named ``bad`` fail."""

    def __init__(self, graph: dict[str, tuple[str, ...]], bad: tuple[str, ...] = (), together: int = 0) -> None:
        self.items = [
            SimpleNamespace(stage=SimpleNamespace(name=name, inputs=inputs, work=Work.DRIVER), artifact=None)
            for name, inputs in graph.items()
        ]
        self.bad, self.order, self.threads = bad, [], set[str]()
        self.together = threading.Barrier(together) if together else None

    def work(self, item: Any, done: dict[str, Any], room: Room) -> Any:
        name = item.stage.name
        assert set(item.stage.inputs) <= set(done)
        self.threads.add(threading.current_thread().name)
        self.order.append(name)
        if self.together and len(item.stage.inputs) == 1:
            self.together.wait(10)  # passes only where so many run at once
        if name in self.bad:
            raise UserError(f"{name}: bad")
        return f"artifact of {name}"


GRAPH = {"a": (), "b": ("a",), "c": ("a",), "d": ("a",), "e": ("b", "c", "d")}


def scheduled(stages: Stages, monkeypatch: pytest.MonkeyPatch, cpus: int) -> dict[str, Any]:
    monkeypatch.setattr(schedule, "connect", lambda config: None)
    monkeypatch.setattr(schedule, "possible", lambda resource: float(cpus))
    monkeypatch.setattr(schedule, "LOOK", 0.05)
    return Schedule(stages.items, stages.work, ClusterConfig(cpus=cpus)).run()


def test_stages_run_side_by_side_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Stages(GRAPH, together=3)
    done = scheduled(stages, monkeypatch, 16)
    assert done == {name: f"artifact of {name}" for name in GRAPH}
    assert stages.order[0] == "a" and stages.order[-1] == "e"


def test_on_a_laptop_they_run_in_the_order_of_the_list_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Stages(GRAPH)
    scheduled(stages, monkeypatch, 2)
    assert stages.order == list(GRAPH) and stages.threads == {threading.current_thread().name}


def test_what_is_finished_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Stages(GRAPH)
    for item in stages.items[:3]:
        item.artifact = "from before"
    assert scheduled(stages, monkeypatch, 2)["b"] == "from before"
    assert stages.order == ["d", "e"]


def test_the_first_error_is_raised_when_the_others_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Stages(GRAPH, bad=("c",), together=3)
    with pytest.raises(UserError, match="c: bad"):
        scheduled(stages, monkeypatch, 16)
    assert sorted(stages.order) == ["a", "b", "c", "d"]
    assert not LEAVE.is_set()


# ------------------------------------------------------------------------------------------------ the pool's size


class Actors:
    """Stands for Ray: actors that start when the cluster has room for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, grows: bool) -> None:
        self.room, self.made, self.killed = 2, 0, 0
        monkeypatch.setattr(pool, "LOOK", -1.0)
        monkeypatch.setattr(pool, "grows", lambda: grows)
        monkeypatch.setattr(pool, "room_for", lambda need: self.room)
        monkeypatch.setattr(pool, "ray", self)

    def make(self) -> Any:
        self.made += 1
        actor = Mock()
        actor.node.remote.return_value = f"call {self.made}"
        return actor

    def kill(self, actor: Any) -> None:
        self.killed += 1

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        up = [name for name in references if int(name.split()[1]) <= self.room + self.killed]
        return up, [name for name in references if name not in up]

    def get(self, reference: str) -> str:
        return "node"


def test_a_pool_asks_for_more_than_there_is_and_takes_up_nodes_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = Actors(monkeypatch, grows=True)
    made = pool.Pool(actors.make, Need(), "download")
    made.resize(100)
    made.wait([], 0)
    assert (len(made.idle), len(made.starting)) == (2, 2)
    actors.room = 6
    made.resize(100)
    made.wait([], 0)
    assert (len(made.idle), len(made.starting)) == (6, 6)
    made.resize(3)  # near the end of the work
    assert (len(made.idle), len(made.starting), actors.killed) == (3, 0, 9)


def test_a_pool_on_a_ray_of_its_own_asks_for_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = Actors(monkeypatch, grows=False)
    made = pool.Pool(actors.make, Need(), "download")
    made.resize(100)
    assert len(made.starting) == 2
    actors.room = 0
    with pytest.raises(UserError, match=r"cluster\.stages\.download: a worker asks for 1 CPU, more than this machine"):
        made.resize(100)


def test_workers_that_do_not_start_are_tried_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = Actors(monkeypatch, grows=False)
    made = pool.Pool(actors.make, Need(), "download")
    broken = Mock(side_effect=RayTaskError("node", "no module", ModuleNotFoundError("pipeline")))
    monkeypatch.setattr(actors, "get", broken)
    made.resize(1)
    made.wait([], 0)
    assert (made.idle, made.starting, made.failed) == ([], {}, 1)
    with pytest.raises(RuntimeError, match="workers in a row did not start, the last one: "):
        for _ in range(2 * pool.STARTS):
            made.resize(1)
            made.wait([], 0)
    assert broken.call_count == pool.STARTS + 1


def test_a_pool_lets_go_for_others_and_heeds_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = Actors(monkeypatch, grows=True)
    actors.room = 10
    shares: list[int | None] = [None]
    made = pool.Pool(actors.make, Need(), "download", lambda: shares[0], most=8)
    made.resize(100)
    made.wait([], 0)
    busy = [made.take() for _ in range(5)]
    assert (len(made.idle), len(made.busy)) == (3, 5)
    shares[0] = 4
    made.resize(100)
    assert (len(made.idle), len(made.busy)) == (0, 5)  # those at work finish their shard first
    made.give(busy[0])
    made.resize(100)
    assert (len(made.idle), len(made.busy)) == (0, 4)


# ------------------------------------------------------------------------------------------------ lost machines


class FakePool:
    """One actor whose calls end as the script says: "done", "dies" or "machine"."""

    def __init__(self, script: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.script, self.calls, self.idle = script, [], [self]
        self.run = SimpleNamespace(remote=self.call)
        monkeypatch.setattr(shards.ray, "get", self.get)
        monkeypatch.setattr(shards, "BACKOFF", 0.0)

    def call(self, shard: Shard, *_: str) -> int:
        self.calls.append(shard.id)
        return len(self.calls) - 1

    def get(self, call: int) -> str:
        if self.script[call] == "done":
            return "marker"
        raise RayActorError(error_msg="gone")

    def resize(self, work: int) -> None:
        self.idle = [self]

    def take(self) -> Any:
        return self.idle.pop()

    def give(self, actor: Any) -> None:
        self.idle.append(actor)

    def drop(self, actor: Any) -> bool:
        return self.script[len(self.calls) - 1] == "machine"

    def wait(self, calls: list[int], seconds: float) -> list[int]:
        return calls


@pytest.mark.parametrize(
    ("script", "calls", "error"),
    [
        (["machine"] * 4 + ["done", "done"], [0] * 5 + [1], ""),  # no retry is used up by machines
        (["dies", "done", "done"], [0, 1, 0], ""),
        (["dies", "done", "dies"], [0, 1, 0], "its process died: "),
        (["machine"] * 11 + ["done", "dies"], [0] * 11 + [1, 0], "its process died: "),  # it takes machines with it
    ],
)
def test_a_lost_machine_is_no_fault_of_the_shard(
    script: list[str], calls: list[int], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FakePool(script, monkeypatch)
    waiting = deque((Shard(number, {}), 0) for number in range(2))
    ended = {shard.id: (marker, told) for shard, marker, told in shards._drain(made, waiting, 1, ("", "", ""))}
    assert made.calls == calls
    assert ended[1] == ("marker", "")
    assert ended[0][1].startswith(error) if error else ended[0] == ("marker", "")
    assert bool(ended[0][1]) == bool(error)


def test_a_driver_that_is_told_to_leave_stops_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FakePool(["done"], monkeypatch)
    LEAVE.set()
    try:
        with pytest.raises(RuntimeError, match="stopped on notice"):
            list(shards._drain(made, deque([(Shard(0, {}), 0)]), 1, ("", "", "")))
    finally:
        LEAVE.clear()
    assert made.calls == []
