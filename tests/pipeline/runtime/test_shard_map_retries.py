"""Retries of shards after dead workers and lost machines, with a scripted pool in place of Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock, create_autospec

import pytest
from ray.exceptions import RayActorError

from dataprep.io.signals import SHUTDOWN
from pipeline.runtime import shard_map
from pipeline.runtime.actor_pool import ActorPool
from pipeline.runtime.run_metrics import ShardMetrics
from pipeline.runtime.shard_map import ShardResult
from pipeline.store.artifact import Shard


class ScriptedPool:
    """A pool of one actor whose calls end as scripted: "done", "dies" or "machine" (its machine is lost)."""

    def __init__(self, script: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.script = script
        self.calls: list[int] = []
        self.idle: list[Any] = [self]
        self.busy: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.run_shard = SimpleNamespace(options=lambda name: SimpleNamespace(remote=self.call))
        monkeypatch.setattr(shard_map.ray, "get", self.get)
        monkeypatch.setattr(shard_map, "BACKOFF", 0.0)

    def call(self, key: str, made_from: list[Any], shard: Shard, *_: str) -> int:
        self.calls.append(shard.id)
        return len(self.calls) - 1

    def get(self, call: int) -> str:
        if self.script[call] == "done":
            return "marker"
        raise RayActorError(error_msg="gone")

    def resize(self, work: int, more_to_come: bool) -> None:
        assert not more_to_come
        self.idle = [self]

    def acquire(self) -> Any:
        return self.idle.pop()

    def release(self, actor: Any) -> None:
        self.idle.append(actor)

    def discard(self, actor: Any) -> bool:
        return self.script[len(self.calls) - 1] == "machine"

    def wait(self, calls: list[int], seconds: float) -> list[int]:
        return calls


def run_shards(pool: ScriptedPool, count: int) -> list[ShardResult]:
    shards = [Shard(number, {}) for number in range(count)]
    call = shard_map._ShardCall("", "", [], "", "", "")
    metrics = create_autospec(ShardMetrics, instance=True)
    work = create_autospec(shard_map._ShardPass, instance=True)
    work.ended, work.feed, work.take.return_value, work.is_held_back.return_value = True, Mock(), [], False
    found = list(shard_map._run_shards(cast(ActorPool, pool), shards, work, 1, call, metrics))
    lost = min(pool.script.count("machine"), shard_map.MAX_LOST_MACHINES)
    assert metrics.add_retry.call_count == len(pool.calls) - count - lost  # lost machines are no retries
    return found


@pytest.mark.parametrize(
    ("script", "calls", "error"),
    [
        (["machine"] * 4 + ["done", "done"], [0] * 5 + [1], ""),  # lost machines use up no retry
        (["dies", "done", "done"], [0, 1, 0], ""),
        (["dies", "done", "dies"], [0, 1, 0], "its worker process died: "),
        (["machine"] * 11 + ["done", "dies"], [0] * 11 + [1, 0], "its worker process died: "),  # the shard kills them
    ],
)
def test_lost_machines_do_not_count_as_failed_tries(
    script: list[str], calls: list[int], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ScriptedPool(script, monkeypatch)
    results = {shard.id: (marker, text) for shard, marker, text in run_shards(pool, 2)}
    assert pool.calls == calls
    assert cast(Any, results[1]) == ("marker", "")
    marker, text = results[0]
    assert text.startswith(error) and bool(text) == bool(error)
    assert (marker is None) == bool(error)


def test_shutdown_stops_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ScriptedPool(["done"], monkeypatch)
    SHUTDOWN.set()
    try:
        with pytest.raises(RuntimeError, match="stopped by SIGTERM"):
            run_shards(pool, 1)
    finally:
        SHUTDOWN.clear()
    assert pool.calls == []
