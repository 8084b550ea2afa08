"""The size of an actor pool as the cluster, its share and the work change."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import RayTaskError

from dataprep.io.errors import UserError
from pipeline.runtime import actor_pool
from pipeline.runtime.actor_pool import ActorPool
from pipeline.runtime.resources import WorkerNeed
from pipeline.runtime.warm_processes import ProcessSpec


class FakeRay:
    """Ray for a pool: actors start while the cluster has capacity for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, can_grow: bool) -> None:
        self.capacity, self.started, self.killed = 2, 0, 0
        monkeypatch.setattr(actor_pool, "CAPACITY_INTERVAL", -1.0)
        monkeypatch.setattr(actor_pool, "can_grow", lambda: can_grow)
        monkeypatch.setattr(actor_pool, "count_fitting_workers", lambda need: self.capacity)
        monkeypatch.setattr(actor_pool, "ray", self)
        monkeypatch.setattr(actor_pool, "WARM", self)
        self.kept = 0

    def acquire(self, spec: ProcessSpec) -> Any:
        self.started += 1
        actor = Mock()
        actor.locate.remote.return_value = f"call {self.started}"
        return actor

    def keep(self, spec: ProcessSpec, actor: Any) -> None:
        self.kept += 1

    def kill(self, actor: Any) -> None:
        self.killed += 1

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        ready = [name for name in references if int(name.split()[1]) <= self.capacity + self.killed]
        return ready, [name for name in references if name not in ready]

    def get(self, reference: str) -> tuple[str, str, list[str]]:
        return "node", "address", []


def test_surplus_actors_are_requested_and_started_on_nodes_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch, can_grow=True)
    pool = ActorPool(ProcessSpec(WorkerNeed()), "download")
    pool.resize(100)
    pool.wait([], 0)
    assert (len(pool.idle), len(pool.starting)) == (2, 2)
    ray.capacity = 6
    pool.resize(100)
    pool.wait([], 0)
    assert (len(pool.idle), len(pool.starting)) == (6, 6)
    pool.resize(3)  # little work left
    assert (len(pool.idle), len(pool.starting), ray.killed, ray.kept) == (3, 0, 6, 3)
    pool.close()
    assert (pool.idle, ray.killed, ray.kept) == ([], 6, 6)


def test_processes_are_not_kept_after_an_error_or_beside_other_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch, can_grow=False)
    pool = ActorPool(ProcessSpec(WorkerNeed()), "download")
    pool.resize(2)
    pool.wait([], 0)
    pool.close(keep=False)
    shared = ActorPool(ProcessSpec(WorkerNeed()), "download", lambda: 2)
    ray.capacity = 4
    shared.resize(2)
    shared.wait([], 0)
    assert len(shared.idle) == 2
    shared.close()
    assert (ray.killed, ray.kept) == (4, 0)


@pytest.mark.parametrize(("can_grow", "outcome"), [(False, (0, 2)), (True, (4, 0))])
def test_processes_that_have_not_answered_are_kept_where_no_node_would_start(
    monkeypatch: pytest.MonkeyPatch, can_grow: bool, outcome: tuple[int, int]
) -> None:
    """A process of the stage before may still be busy with forgetting that stage."""
    ray = FakeRay(monkeypatch, can_grow)
    pool = ActorPool(ProcessSpec(WorkerNeed()), "clip")
    pool.resize(100)
    pool.close()
    assert (ray.killed, ray.kept) == outcome and pool.starting == {}


def test_a_local_ray_gets_no_surplus_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch, can_grow=False)
    pool = ActorPool(ProcessSpec(WorkerNeed()), "download")
    pool.resize(100)
    assert len(pool.starting) == 2
    ray.capacity = 0
    with pytest.raises(UserError, match=r"cluster\.stages\.download: a worker requests 1 CPU, more than this machine"):
        pool.resize(100)


def test_failed_starts_are_retried_a_limited_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch, can_grow=False)
    pool = ActorPool(ProcessSpec(WorkerNeed()), "download")
    broken = Mock(side_effect=RayTaskError("node", "no module", ModuleNotFoundError("pipeline")))
    monkeypatch.setattr(ray, "get", broken)
    pool.resize(1)
    pool.wait([], 0)
    assert (pool.idle, pool.starting, pool.failed_starts) == ([], {}, 1)
    with pytest.raises(RuntimeError, match="workers in a row failed to start, last: "):
        for _ in range(2 * actor_pool.MAX_FAILED_STARTS):
            pool.resize(1)
            pool.wait([], 0)
    assert broken.call_count == actor_pool.MAX_FAILED_STARTS + 1


def test_a_pool_shrinks_to_its_share_and_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch, can_grow=True)
    ray.capacity = 10
    shares: list[int | None] = [None]
    pool = ActorPool(ProcessSpec(WorkerNeed()), "download", lambda: shares[0], max_actors=8)
    pool.resize(100)
    pool.wait([], 0)
    busy = [pool.acquire() for _ in range(5)]
    assert (len(pool.idle), len(pool.busy)) == (3, 5)
    shares[0] = 4
    pool.resize(100)
    assert (len(pool.idle), len(pool.busy)) == (0, 5)  # busy actors finish their shard first
    pool.release(busy[0])
    pool.resize(100)
    assert (len(pool.idle), len(pool.busy)) == (0, 4)


def test_idle_actors_wait_for_shards_that_are_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(monkeypatch, can_grow=True)
    pool = ActorPool(ProcessSpec(WorkerNeed()), "score")
    pool.resize(2)
    pool.wait([], 0)
    pool.resize(0, more_to_come=True)
    assert (len(pool.idle), ray.kept) == (2, 0)
    pool.resize(0)
    assert (len(pool.idle), ray.kept) == (0, 2)
