"""Maps a worker over shards on Ray: caching, retries, quarantine, commit, progress.

A process publishes a shard's files under their final names and then writes its marker, so a finished shard is never
processed again. `pipeline.runtime.actor_pool` manages the processes.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from pipeline.runtime.shard_stream import ShardFeed
from pipeline.runtime.shard_worker import ShardWorker
from pipeline.runtime.warm_processes import ProcessSpec
from pipeline.store.artifact import Shard
from pipeline.store.markers import Marker, MarkerBatches, shard_fingerprint
from pipeline.store.shard_cache import ShardCache, worker_fingerprint
from pipeline.terminal import console, progress

if TYPE_CHECKING:
    from pipeline.runtime.context import Context

BACKOFF = 1.0  # seconds before the first retry of a shard; doubles each time
MAX_WAIT = 0.5  # seconds for a shard to finish, before the pool is looked at again
FEED_INTERVAL = 0.1  # seconds after which a stage looks for shards that its running inputs have committed
MAX_LOST_MACHINES = 10  # machines lost while running a shard before a loss counts as a failed try
ShardResult = tuple[Shard, Marker | None, str]  # marker of a finished shard, or None and the error


def map_shards(
    ctx: Context[Any, Any],
    worker: type[ShardWorker],
    arguments: Mapping[str, Any],
    shards: Sequence[Shard] | ShardFeed,
    *,
    subfolder: str = "",
    on_gpu: bool = False,
    keep_workers: bool = False,
    is_final: Callable[[Marker], bool] = lambda marker: True,
) -> None:
    """Runs ``worker(**arguments)`` over every shard; outputs land in the stage's folder or in a subfolder of it.

    Reuses shards of the folder or an earlier artifact of the stage if worker and input files are the same. Tries the
    others ``cluster.retries`` + 1 times and then quarantines them. Adds markers, counters and quarantined shards to
    ``ctx``.

    Args:
        shards: a list, or a feed of shards that inputs are still committing.
        on_gpu: gives each worker a GPU if the cluster has any, unless `cluster.stages` says otherwise.
        keep_workers: keeps the workers in case that the next call has the same worker and arguments.
        is_final: whether a finished shard may be handed to stages that read this one while it runs; another call
            that writes the shard again must be ruled out. All others are handed over when the stage ends.

    Raises:
        UserError: there is no shard, or a worker raised it (retrying cannot help).
        StageError: more than `cluster.max_quarantined` shards are quarantined.
        InputFailedError: an input failed that was still running; the shards that it had committed are finished.
    """
    feed = shards if isinstance(shards, ShardFeed) else ShardFeed.from_list(shards)
    fingerprint = _fingerprint(ctx, worker, arguments, feed.stages)
    work = _ShardPass(ctx, feed, fingerprint, subfolder, is_final)
    if first := work.await_work():
        ctx.connect()
        key = worker_fingerprint(worker, arguments, [], {})
        pool = ctx.pools.pop(key, None)
        if pool is None:
            ctx.close_pools()  # kept workers of other arguments hold the resources
            pool = _make_pool(ctx, on_gpu, getattr(worker, "process_kind", ""))
        try:
            call = _ShardCall(ctx.stage, key, [ray.put((worker, arguments))], work.folder, subfolder, fingerprint)
            _finish_shards(ctx, pool, call, first, work)
        except BaseException:
            pool.close(keep=False)
            raise
        if keep_workers:
            ctx.pools[key] = pool
        else:
            pool.close()
        _quarantine(ctx, work.failed, len(feed.complete))
    feed.check_inputs()
    if not feed.complete:
        raise UserError(f"{ctx.stage}: no shard to process; the stage before it has none left")
    ctx.count_left_out(feed)
    _add_finished(ctx, [marker for _, marker in sorted(work.done.items())])


class _ShardPass:
    """The shards of one call: which have come, which are finished, and which have failed."""

    def __init__(
        self,
        ctx: Context[Any, Any],
        feed: ShardFeed,
        fingerprint: str,
        subfolder: str,
        is_final: Callable[[Marker], bool],
    ) -> None:
        self.ctx, self.feed, self.fingerprint, self.is_final = ctx, feed, fingerprint, is_final
        self.folder = ctx.path(subfolder) if subfolder else ctx.folder
        self.cache = ShardCache(ctx.run, ctx.stage, subfolder, self.folder)
        self.done: dict[int, Marker] = {}
        self.failed: list[dict[str, Any]] = []
        self.ended = False

    def take(self) -> list[Shard]:
        """Returns the shards that have come since the last call and are not finished."""
        if self.ended:
            return []
        self.ended = self.feed.readers_ended
        new = self.feed.take()
        found = self.cache.find({s.id: shard_fingerprint(self.fingerprint, s.id, s.sha256) for s in new})
        for marker in found.values():
            self.add_done(marker)
        output = self.ctx.streams.output
        if output is not None:
            output.expected = max(output.expected, self.feed.total)
        if self.ended and self.cache.taken:
            total = len(self.feed.complete)
            self.ctx.run.event("shards_taken_over", stage=self.ctx.stage, shards=self.cache.taken, of=total)
        return [shard for shard in new if shard.id not in found]

    def await_work(self) -> list[Shard]:
        """Returns the first shards that are not finished; none if all are."""
        while not (found := self.take()) and not self.ended:
            _check_shutdown()
            time.sleep(FEED_INTERVAL)
        return found

    def add_done(self, marker: Marker) -> None:
        """Adds a finished shard and hands it over to stages that are waiting for it."""
        self.done[marker.id] = marker
        if self.is_final(marker):
            self.ctx.offer_shard(Shard.from_marker(self.ctx.folder, marker))

    def is_held_back(self, pool: ActorPool) -> bool:
        """Returns whether the stages that read this one are too far behind for another shard."""
        output = self.ctx.streams.output
        workers = max(1, len(pool.busy) + len(pool.idle))
        return output is not None and output.lag() >= self.ctx.cluster.stream_lag * workers


def _finish_shards(
    ctx: Context[Any, Any], pool: ActorPool, call: _ShardCall, first: Sequence[Shard], work: _ShardPass
) -> None:
    """Runs the ``first`` shards and all that are to come, with progress and metrics."""
    batches, metrics = MarkerBatches(call.folder, work.cache.own), ShardMetrics(ctx.folder, ctx.stage)
    with progress(f"{ctx.stage} {call.subfolder}".strip(), work.feed.total, "shards") as update:
        update(len(work.done))
        for shard, marker, error in _run_shards(pool, first, work, ctx.cluster.retries, call, metrics):
            if marker is not None:
                work.add_done(marker)
                batches.add(marker)
                metrics.add_counters(marker.counters)
            else:
                work.failed.append({"shard": shard.id, "reason": error})
            done, failed, total = len(work.done), len(work.failed), work.feed.total
            metrics.set_shards(done=done, quarantined=failed, waiting=total - done - failed)
            update(done, f"{failed} quarantined" if failed else "", total)


def _make_pool(ctx: Context[Any, Any], on_gpu: bool, kind: str) -> ActorPool:
    """Returns a pool of processes as large as the config, the cluster and other stages allow."""
    requested = StageResources() if ctx.trains else ctx.cluster.stage_resources(ctx.stage)
    need, shares = resolve_actor_need(requested, on_gpu, ctx.streams.active), ctx.shares
    return ActorPool(
        ProcessSpec(need, kind=kind),
        ctx.stage,
        lambda: shares.max_workers(ctx.stage, need) if shares else None,
        requested.max_actors,
    )


def _fingerprint(ctx: Context[Any, Any], worker: type, arguments: Mapping[str, Any], by_shard: Collection[str]) -> str:
    """Returns the worker's fingerprint; inputs that are not processed ``by_shard`` count as a whole."""
    whole = [artifact for stage, artifact in ctx.artifacts.items() if stage not in by_shard]
    return worker_fingerprint(worker, arguments, whole, ctx.sources)


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


def _check_shutdown() -> None:
    if SHUTDOWN.is_set():
        raise RuntimeError("stopped by SIGTERM; finished shards are kept")


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
    pool: ActorPool,
    first: Sequence[Shard],
    work: _ShardPass,
    retries: int,
    call: _ShardCall,
    metrics: ShardMetrics,
) -> Iterator[ShardResult]:
    """Yields the ``first`` shards and those that come, as they finish or fail."""
    waiting = deque((shard, 0) for shard in first)
    running: dict[Any, tuple[Any, Shard, int]] = {}
    not_before: dict[int, float] = {}
    machines_lost: Counter[int] = Counter()
    while waiting or running or not work.ended:
        _check_shutdown()
        waiting.extend((shard, 0) for shard in work.take())
        pool.resize(len(waiting) + len(running), more_to_come=not work.ended)
        for _ in range(len(waiting)):
            if not pool.idle or work.is_held_back(pool):
                break
            shard, tries = waiting.popleft()
            if not_before.get(shard.id, 0) > time.monotonic():
                waiting.append((shard, tries))
                continue
            actor = pool.acquire()
            running[call.start(actor, shard)] = (actor, shard, tries)
        work.feed.set_waiting(len(waiting))
        metrics.set_workers(busy=len(pool.busy), idle=len(pool.idle), starting=len(pool.starting))
        for reference in pool.wait(list(running), MAX_WAIT if work.ended else FEED_INTERVAL):
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
