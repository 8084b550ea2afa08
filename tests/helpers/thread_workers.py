"""Shard workers in threads of the test process, in place of processes of Ray: a pipeline of tests runs in seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import RayActorError, RayTaskError

from dataprep.io import storage
from pipeline.execution import scheduler
from pipeline.runtime import ray_session, shard_map
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.store.artifact import Shard, describe_file
from pipeline.store.markers import Marker, write_marker


class ThreadActor:
    """Stands for an actor: runs `run_shard` of its worker in a thread; a worker that raises SystemExit has died."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.workers: dict[str, Any] = {}
        remote = lambda *arguments: self.thread.submit(self._run, *arguments)  # noqa: E731
        self.run_shard = SimpleNamespace(options=lambda name: SimpleNamespace(remote=remote))

    def _run(
        self, key: str, made_from: Sequence[Any], shard: Shard, folder: str, subfolder: str, fingerprint: str
    ) -> Marker:
        worker, arguments = made_from[0]
        made = self.workers.setdefault(key, worker(**arguments))
        with tempfile.TemporaryDirectory() as scratch:
            counters = made(ShardTask(shard.id, shard.files, Path(scratch)))
            outputs = [describe_file(scratch, name) for name in storage.list_files(scratch)]
            for output in outputs:
                storage.publish(Path(scratch) / output.path, storage.join(folder, output.path))
        marker = Marker(shard.id, fingerprint, shard.sha256, outputs, counters, subfolder)
        write_marker(folder, marker)
        return marker


class ThreadActors:
    """Stands for `pipeline.runtime.actor_pool.ActorPool`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle: list[Any] = []
        self.busy: list[Any] = []
        self.starting: dict[Any, Any] = {}

    def resize(self, work: int, more_to_come: bool = False) -> None:
        for _ in range(min(work, self.limit) - len(self.idle) - len(self.busy)):
            self.idle.append(ThreadActor())

    def acquire(self) -> Any:
        self.busy.append(self.idle.pop())
        return self.busy[-1]

    def release(self, actor: Any) -> None:
        self.busy.remove(actor)
        self.idle.append(actor)

    def discard(self, actor: Any) -> bool:
        self.busy.remove(actor)
        return False

    def wait(self, calls: Sequence[Future[Marker]], seconds: float) -> list[Future[Marker]]:
        return list(wait(calls, seconds if calls else 0.01, FIRST_COMPLETED).done)

    def close(self, keep: bool = True) -> None:
        self.idle = []


def get_result(call: Future[Marker]) -> Marker:
    """Returns what `ray.get` would, or raises it."""
    error = call.exception()
    if isinstance(error, SystemExit):
        raise RayActorError(error_msg="gone")
    if isinstance(error, Exception):
        raise RayTaskError("run_shard", "", error)
    return call.result()


def run_in_threads(monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    """Replaces Ray by threads, for stages of shard workers on a machine of ``cpus``."""

    def make_pool(ctx: Context[Any, Any], on_gpu: bool, kind: str) -> ThreadActors:
        return ThreadActors(ctx.cluster.stage_resources(ctx.stage).max_actors or cpus)

    monkeypatch.setattr(shard_map, "_make_pool", make_pool)
    monkeypatch.setattr(shard_map, "ray", SimpleNamespace(get=get_result, put=lambda value: value))
    monkeypatch.setattr(shard_map, "ShardMetrics", Mock())
    monkeypatch.setattr(ray_session, "connect_ray", lambda config: None)
    monkeypatch.setattr(scheduler, "connect_ray", lambda config: None)
    monkeypatch.setattr(scheduler, "find_cluster_address", lambda config: None)
    monkeypatch.setattr(scheduler, "get_cluster_capacity", {"CPU": float(cpus), "GPU": 0.0}.__getitem__)
