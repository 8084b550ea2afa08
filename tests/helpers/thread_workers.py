"""Shard workers in threads of the test process, in place of processes of Ray: a pipeline of tests runs in seconds.

The pool of workers and what becomes of a shard are the product's; only Ray is another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray.exceptions import RayActorError, RayTaskError

from pipeline.execution import scheduler
from pipeline.runtime import actor_pool, ray_session, shard_map
from pipeline.runtime.actor_pool import ActorPool
from pipeline.runtime.context import Context
from pipeline.runtime.resources import WorkerNeed
from pipeline.runtime.shard_commit import finish_shard
from pipeline.runtime.warm_processes import ProcessSpec
from pipeline.store.artifact import Shard
from pipeline.store.markers import Marker

NODE = "this machine"


class ThreadProcess:
    """Stands for a handle of `WorkerProcess`: calls run in a thread; a worker that raises SystemExit has died."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.workers: dict[str, Any] = {}
        self.locate = self._remote(lambda: (NODE, "127.0.0.1", []))
        self.run_shard = SimpleNamespace(options=lambda name: self._remote(self._run_shard))

    def _remote(self, function: Callable[..., Any]) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.thread.submit(function, *arguments))

    def _run_shard(self, key: str, made_from: Sequence[Any], shard: Shard, *where: str) -> Marker:
        if key not in self.workers:
            worker, arguments = made_from[0]
            self.workers[key] = worker(**arguments)
        return finish_shard(self.workers[key], shard, *where)


def wait_for(
    calls: Sequence[Future[Any]], num_returns: int, timeout: float
) -> tuple[list[Future[Any]], list[Future[Any]]]:
    """Returns the calls that have ended and the others, as `ray.wait` does."""
    done = wait(calls, timeout, FIRST_COMPLETED if num_returns == 1 else ALL_COMPLETED).done
    return [call for call in calls if call in done], [call for call in calls if call not in done]


def get_result(call: Future[Any]) -> Any:
    """Returns what `ray.get` would, or raises it."""
    error = call.exception()
    if isinstance(error, SystemExit):
        raise RayActorError(error_msg="gone")
    if isinstance(error, Exception):
        raise RayTaskError("run_shard", "", error)
    return call.result()


def run_in_threads(monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    """Replaces Ray by threads, for stages of shard workers on a machine of ``cpus``."""

    def make_pool(ctx: Context[Any, Any], on_gpu: bool, kind: str) -> ActorPool:
        max_actors = ctx.cluster.stage_resources(ctx.stage).max_actors
        return ActorPool(ProcessSpec(WorkerNeed(), kind=kind), ctx.stage, max_actors=max_actors)

    ray = SimpleNamespace(
        get=get_result,
        put=lambda value: value,
        wait=wait_for,
        kill=lambda process: None,
        nodes=lambda: [{"NodeID": NODE, "Alive": True}],
    )
    warm = SimpleNamespace(acquire=lambda spec: ThreadProcess(), keep=lambda spec, process: None)
    for module in (actor_pool, shard_map):
        monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(actor_pool, "WARM", warm)
    monkeypatch.setattr(actor_pool, "can_grow", lambda: False)
    monkeypatch.setattr(actor_pool, "count_fitting_workers", lambda need: cpus)
    monkeypatch.setattr(shard_map, "_make_pool", make_pool)
    monkeypatch.setattr(shard_map, "ShardMetrics", Mock())
    monkeypatch.setattr(ray_session, "connect_ray", lambda config: None)
    monkeypatch.setattr(scheduler, "connect_ray", lambda config: None)
    monkeypatch.setattr(scheduler, "find_cluster_address", lambda config: None)
    monkeypatch.setattr(scheduler, "get_cluster_capacity", {"CPU": float(cpus), "GPU": 0.0}.__getitem__)
