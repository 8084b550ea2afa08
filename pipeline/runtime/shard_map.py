"""Maps a worker over shards on Ray: caching, retries, quarantine, commit, progress.

A process publishes a shard's files under their final names and then writes its marker, so a finished shard is never
processed again. `pipeline.runtime.actor_pool` manages the processes.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dataprep.io.errors import UserError
from dataprep.io.signals import SHUTDOWN
from pipeline.runtime.actor_pool import ActorPool
from pipeline.runtime.config import StageResources
from pipeline.runtime.errors import StageError
from pipeline.runtime.resources import resolve_actor_need
from pipeline.runtime.run_metrics import ShardMetrics
from pipeline.runtime.shard_worker import ShardWorker
from pipeline.runtime.warm_processes import ProcessSpec
from pipeline.store.artifact import Shard
from pipeline.store.markers import Marker, MarkerBatches, read_markers, shard_fingerprint
from pipeline.store.shard_cache import take_over_shards, worker_fingerprint
from pipeline.terminal import console, progress

if TYPE_CHECKING:
    from pipeline.runtime.context import Context

BACKOFF = 1.0  # seconds before the first retry of a shard; doubles each time
MAX_LOST_MACHINES = 10  # machines lost while running a shard before a loss counts as a failed try
ShardResult = tuple[Shard, Marker | None, str]  # marker of a finished shard, or None and the error


def map_shards(
    ctx: Context[Any, Any],
    worker: type[ShardWorker],
    arguments: Mapping[str, Any],
    shards: Sequence[Shard],
    *,
    subfolder: str = "",
    on_gpu: bool = False,
    keep_workers: bool = False,
) -> None:
    """Runs ``worker(**arguments)`` over every shard; outputs land in the stage's folder or in a subfolder of it.

    Reuses shards of the folder or an earlier artifact of the stage if worker and input files are the same. Tries the
    others ``cluster.retries`` + 1 times and then quarantines them. Adds markers, counters and quarantined shards to
    ``ctx``.

    Args:
        on_gpu: gives each worker a GPU if the cluster has any, unless `cluster.stages` says otherwise.
        keep_workers: keeps the workers in case that the next call has the same worker and arguments.

    Raises:
        UserError: ``shards`` is empty, or a worker raised it (retrying cannot help).
        StageError: more than `cluster.max_quarantined` shards are quarantined.
    """
    if not shards:
        raise UserError(f"{ctx.stage}: no shard to process; the stage before it has none left")
    fingerprint = _fingerprint(ctx, worker, arguments, shards)
    folder = ctx.path(subfolder) if subfolder else ctx.folder
    done = _take_finished(ctx, folder, subfolder, shards, fingerprint)
    waiting = [shard for shard in shards if shard.id not in done]
    if waiting:
        ctx.connect()
        key = worker_fingerprint(worker, arguments, [], {})
        pool = ctx.pools.pop(key, None)
        if pool is None:
            ctx.close_pools()  # kept workers of other arguments hold the resources
            pool = _make_pool(ctx, on_gpu, getattr(worker, "process_kind", ""))
        try:
            call = _ShardCall(ctx.stage, key, [ray.put((worker, arguments))], folder, subfolder, fingerprint)
            failed = _finish_shards(ctx, pool, call, waiting, done)
        except BaseException:
            pool.close(keep=False)
            raise
        if keep_workers:
            ctx.pools[key] = pool
        else:
            pool.close()
        _quarantine(ctx, failed, len(shards))
    _add_finished(ctx, [done[shard.id] for shard in sorted(shards, key=lambda s: s.id) if shard.id in done])


def _finish_shards(
    ctx: Context[Any, Any], pool: ActorPool, call: _ShardCall, waiting: Sequence[Shard], done: dict[int, Marker]
) -> list[dict[str, Any]]:
    """Runs ``waiting`` and adds their markers to ``done``, with progress and metrics; returns the failed shards."""
    total, failed = len(done) + len(waiting), list[dict[str, Any]]()
    batches, metrics = MarkerBatches(call.folder, done), ShardMetrics(ctx.folder, ctx.stage)
    with progress(f"{ctx.stage} {call.subfolder}".strip(), total, "shards") as update:
        update(len(done))
        for shard, marker, error in _run_shards(pool, waiting, ctx.cluster.retries, call, metrics):
            if marker is not None:
                done[shard.id] = marker
                batches.add(marker)
                metrics.add_counters(marker.counters)
            else:
                failed.append({"shard": shard.id, "reason": error})
            metrics.set_shards(done=len(done), quarantined=len(failed), waiting=total - len(done) - len(failed))
            update(len(done), f"{len(failed)} quarantined" if failed else "")
    return failed


def _make_pool(ctx: Context[Any, Any], on_gpu: bool, kind: str) -> ActorPool:
    """Returns a pool of processes as large as the config, the cluster and other stages allow."""
    requested = StageResources() if ctx.trains else ctx.cluster.stage_resources(ctx.stage)
    need, shares = resolve_actor_need(requested, on_gpu), ctx.shares
    return ActorPool(
        ProcessSpec(need, kind=kind),
        ctx.stage,
        lambda: shares.max_workers(ctx.stage, need) if shares else None,
        requested.max_actors,
    )


def _fingerprint(ctx: Context[Any, Any], worker: type, arguments: Mapping[str, Any], shards: Sequence[Shard]) -> str:
    """Returns the worker's fingerprint; inputs that are not processed per shard count as a whole."""
    by_shard = {name.partition(".")[0] for shard in shards for name in shard.files}
    whole = [artifact for stage, artifact in ctx.artifacts.items() if stage not in by_shard]
    return worker_fingerprint(worker, arguments, whole, ctx.sources)


def _take_finished(
    ctx: Context[Any, Any], folder: str, subfolder: str, shards: Sequence[Shard], fingerprint: str
) -> dict[int, Marker]:
    """Links reusable shards of earlier artifacts into ``folder``; returns the markers of all finished shards by id."""
    wanted = {shard.id: shard_fingerprint(fingerprint, shard.id, shard.sha256) for shard in shards}

    def read_finished() -> dict[int, Marker]:
        return {i: marker for i, marker in read_markers(folder).items() if wanted.get(i) == marker.fingerprint}

    done = read_finished()
    missing = {shard: name for shard, name in wanted.items() if shard not in done}
    taken = take_over_shards(ctx.run, ctx.stage, subfolder, folder, missing)
    if not taken:
        return done
    ctx.run.event("shards_taken_over", stage=ctx.stage, shards=taken, of=len(shards))
    return read_finished()


def _add_finished(ctx: Context[Any, Any], markers: Sequence[Marker]) -> None:
    ctx.finished += markers
    for marker in markers:
        for name, count in marker.counters.items():
            ctx.counters[name] = ctx.counters.get(name, 0) + count


def _quarantine(ctx: Context[Any, Any], failed: Sequence[dict[str, Any]], shards: int) -> None:
    """Records failed shards; raises StageError if they are more than the config allows."""
    for item in sorted(failed, key=lambda item: item["shard"]):
        ctx.run.event("quarantined", stage=ctx.stage, **item)
        ctx.quarantined.append(item)
    if len(ctx.quarantined) > ctx.cluster.max_quarantined:
        first = ctx.quarantined[0]
        raise StageError(
            f"{len(ctx.quarantined)} of {shards} shards failed {ctx.cluster.retries + 1} times and are quarantined; "
            f"the first is shard {first['shard']}: {first['reason']}. Finished shards are kept. "
            f"To continue without the failed ones set cluster.max_quarantined={len(ctx.quarantined)}"
        )


@dataclass(frozen=True)
class _ShardCall:
    """Arguments of `WorkerProcess.run_shard` that are the same for all shards."""

    stage: str
    key: str
    made_from: list[Any]
    folder: str
    subfolder: str
    fingerprint: str

    def start(self, process: Any, shard: Shard) -> Any:
        """Starts a process on ``shard``; returns the reference to its marker. Ray's dashboard shows the name."""
        run_shard = process.run_shard.options(name=f"{self.stage}: shard {shard.id}")
        return run_shard.remote(self.key, self.made_from, shard, self.folder, self.subfolder, self.fingerprint)


def _run_shards(
    pool: ActorPool, shards: Sequence[Shard], retries: int, call: _ShardCall, metrics: ShardMetrics
) -> Iterator[ShardResult]:
    """Yields shards as they finish or fail."""
    waiting = deque((shard, 0) for shard in shards)
    running: dict[Any, tuple[Any, Shard, int]] = {}
    not_before: dict[int, float] = {}
    machines_lost: Counter[int] = Counter()
    while waiting or running:
        if SHUTDOWN.is_set():
            raise RuntimeError("stopped by SIGTERM; finished shards are kept")
        pool.resize(len(waiting) + len(running))
        for _ in range(len(waiting)):
            if not pool.idle:
                break
            shard, tries = waiting.popleft()
            if not_before.get(shard.id, 0) > time.monotonic():
                waiting.append((shard, tries))
                continue
            actor = pool.acquire()
            running[call.start(actor, shard)] = (actor, shard, tries)
        metrics.set_workers(busy=len(pool.busy), idle=len(pool.idle), starting=len(pool.starting))
        for reference in pool.wait(list(running), 0.5):
            actor, shard, tries = running.pop(reference)
            try:
                marker = ray.get(reference)
            except RayTaskError as failure:
                if isinstance(failure.cause, UserError):
                    raise UserError(str(failure.cause)) from failure
                pool.release(actor)
                error = f"{type(failure.cause).__name__}: {failure.cause}"
            except RayActorError as failure:
                error = f"its worker process died: {str(failure).strip().splitlines()[0]}"
                if pool.discard(actor) and machines_lost[shard.id] < MAX_LOST_MACHINES:
                    machines_lost[shard.id] += 1
                    console.print(f"[yellow]shard {shard.id}: its machine was lost; retrying on another[/]")
                    waiting.appendleft((shard, tries))
                    continue
            else:
                pool.release(actor)
                yield shard, marker, ""
                continue
            if tries < retries:
                not_before[shard.id] = time.monotonic() + BACKOFF * 2**tries
                waiting.append((shard, tries + 1))
                metrics.add_retry()
            else:
                yield shard, None, error
