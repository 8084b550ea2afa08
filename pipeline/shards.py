"""The one place where work fans out over shards: retries, quarantine, commit, progress; `pipeline.pool` has the actors.

A worker is a class: its constructor loads what every shard needs (a model, a server), and calling it with a shard of
local files and an empty local folder writes the shard's outputs there and returns counters. The pool publishes those
files under their final names and then a marker, so that a finished shard is never worked on again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from dataprep import storage
from dataprep.schema import UserError
from pipeline.notice import LEAVE
from pipeline.placement import Need, actor_need
from pipeline.pool import LOST, Pool
from pipeline.progress import console, progress
from pipeline.resources import StageResources
from pipeline.store import Index, Marker, Shard, describe, read_markers, shard_fingerprint, write_marker

BACKOFF = 1.0  # seconds before the first retry of a shard; doubles each time
Ended = tuple[Shard, Marker | None, str]


class Worker(Protocol):
    """What a shard worker's instance does."""

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]: ...


@dataclass
class Done:
    """What a pass over shards ended with."""

    shards: list[Marker] = field(default_factory=list)  # in order
    counters: dict[str, int] = field(default_factory=dict)
    quarantined: list[dict[str, Any]] = field(default_factory=list)


class _Actor:
    """Holds one worker and runs one shard at a time."""

    def __init__(self, worker: type, arguments: dict[str, Any]) -> None:
        # Ray may unpack the job's files anew under this process, and its folder would be gone; paths are absolute here.
        os.chdir(tempfile.gettempdir())
        # Made at the first shard, so that what goes wrong there reaches the driver as the exception that it is.
        self.make = lambda: worker(**arguments)
        self.worker: Worker | None = None

    def node(self) -> str:
        """The id of the node that this is on."""
        return str(ray.get_runtime_context().get_node_id())

    def run(self, shard: Shard, folder: str, subfolder: str, fingerprint: str) -> Marker:
        """Works on ``shard``, publishes its files into ``folder`` and commits its marker, which is returned."""
        self.worker = self.worker or self.make()
        with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch, ExitStack() as stack:
            files = {name: stack.enter_context(storage.local_copy(path)) for name, path in shard.files.items()}
            counters = self.worker(Shard(shard.id, files, shard.sha256), Path(scratch))
            outputs = [describe(scratch, name) for name in storage.list_files(scratch)]
            for output in outputs:
                storage.publish(Path(scratch) / output.path, storage.join(folder, output.path))
        marker = Marker(shard.id, fingerprint, shard.sha256, outputs, counters, subfolder)
        write_marker(folder, marker)
        return marker


def finished(folder: str, shards: Sequence[Shard], worker: str) -> dict[int, Marker]:
    """The markers of those ``shards`` that ``folder`` has, made by ``worker`` of the very same files, by shard id."""
    found = read_markers(folder)
    wanted = {shard.id: shard_fingerprint(worker, shard.id, shard.sha256) for shard in shards}
    return {index: marker for index, marker in found.items() if wanted.get(index) == marker.fingerprint}


def map_shards(
    worker: type,
    arguments: dict[str, Any],
    shards: Sequence[Shard],
    folder: str,
    *,
    label: str,
    retries: int,
    subfolder: str = "",
    fingerprint: str = "",
    on_gpu: bool = False,
    asked: StageResources | None = None,
    share: Callable[[Need], int | None] = lambda need: None,
    have: Mapping[int, Marker] | None = None,
) -> Done:
    """Runs ``worker`` over every shard that ``folder`` has no marker of.

    Args:
        worker: the class of the worker; ``arguments`` go to its constructor in each actor.
        folder: the artifact; the shards lie in its ``subfolder``.
        retries: times that a shard is tried again after an exception or a dead actor; a lost machine is no fault of it.
        fingerprint: the worker's, see `pipeline.reuse.worker_fingerprint`.
        on_gpu: each actor has a GPU where the cluster has any, besides its CPU, unless ``asked`` says otherwise.
        asked: what the user wants an actor to take.
        share: how many actors may be there for the sake of other stages; None: as many as there is room for.
        have: the shards that are finished, by id, where they are known already.

    Returns:
        Markers and summed counters of every shard, those of earlier attempts included, and the shards given up on.

    Raises:
        UserError: where a worker raised it: trying again cannot help.
    """
    folder = storage.join(folder, subfolder) if subfolder else folder
    done = dict(finished(folder, shards, fingerprint) if have is None else have)
    waiting = deque((shard, 0) for shard in shards if shard.id not in done)
    quarantined: list[dict[str, Any]] = []
    if waiting:
        asked = asked or StageResources()
        need = actor_need(asked, on_gpu)
        make = _maker(worker, arguments, need)
        pool = Pool(make, need, label.split()[0], lambda: share(need), asked.max_actors)
        index = Index(folder, done)
        try:
            with progress(label, len(shards), "shards") as update:
                update(len(done))
                for shard, marker, error in _drain(pool, waiting, retries, (folder, subfolder, fingerprint)):
                    if marker is not None:
                        done[shard.id] = marker
                        index.add(marker)
                    else:
                        quarantined.append({"shard": shard.id, "reason": error})
                    update(len(done), f"{len(quarantined)} quarantined" if quarantined else "")
        finally:
            pool.close()
    result = Done(quarantined=sorted(quarantined, key=lambda item: item["shard"]))
    for number in sorted(shard.id for shard in shards if shard.id in done):
        result.shards.append(done[number])
        for name, count in done[number].counters.items():
            result.counters[name] = result.counters.get(name, 0) + count
    return result


def _maker(worker: type, arguments: dict[str, Any], need: Need) -> Callable[[], Any]:
    """Starts an actor with one worker."""
    env = {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env["PYTHONWARNINGS"] = os.environ.get("PYTHONWARNINGS", "ignore")
    if not need.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""  # what did not ask for a GPU is not to find one
    remote = ray.remote(_Actor).options(runtime_env={"env_vars": env}, **need.options())
    given = ray.put(arguments)  # once for all actors
    return lambda: remote.remote(worker, given)


def _drain(pool: Pool, waiting: deque[tuple[Shard, int]], retries: int, place: tuple[str, str, str]) -> Iterator[Ended]:
    """Yields (shard, marker or None, error) as shards finish or are given up on; ``place`` goes to `_Actor.run`."""
    running: dict[Any, tuple[Any, Shard, int]] = {}
    not_before: dict[int, float] = {}
    machines: Counter[int] = Counter()  # lost under a shard
    while waiting or running:
        if LEAVE.is_set():
            raise RuntimeError("stopped on notice; the shards that are finished are kept")
        pool.resize(len(waiting) + len(running))
        for _ in range(len(waiting)):
            if not pool.idle:
                break
            shard, tries = waiting.popleft()
            if not_before.get(shard.id, 0) > time.monotonic():
                waiting.append((shard, tries))
                continue
            actor = pool.take()
            running[actor.run.remote(shard, *place)] = (actor, shard, tries)
        for reference in pool.wait(list(running), 0.5):
            actor, shard, tries = running.pop(reference)
            try:
                marker = ray.get(reference)
            except RayTaskError as failure:
                if isinstance(failure.cause, UserError):
                    raise UserError(str(failure.cause)) from failure
                pool.give(actor)
                error = f"{type(failure.cause).__name__}: {failure.cause}"
            except RayActorError as failure:
                error = f"its process died: {str(failure).strip().splitlines()[0]}"
                if pool.drop(actor) and machines[shard.id] < LOST:
                    machines[shard.id] += 1
                    console.print(f"[yellow]shard {shard.id}: its machine was lost; it is done again elsewhere[/]")
                    waiting.appendleft((shard, tries))
                    continue
            else:
                pool.give(actor)
                yield shard, marker, ""
                continue
            if tries < retries:
                not_before[shard.id] = time.monotonic() + BACKOFF * 2**tries
                waiting.append((shard, tries + 1))
            else:
                yield shard, None, error
