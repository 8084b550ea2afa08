"""The one place where work fans out over shards: a bounded pool of Ray actors, retries, quarantine, commit, progress.

A worker is a class: its constructor loads what every shard needs (a model, a server), and calling it with a shard of
local files and an empty local folder writes the shard's outputs there and returns counters. The pool publishes those
files under their final names and then a marker, so that a finished shard is never worked on again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from dataprep import storage
from dataprep.schema import UserError
from pipeline.cluster import gpus
from pipeline.progress import progress
from pipeline.store import Marker, Shard, describe, read_markers, shard_fingerprint, write_marker

BACKOFF = 1.0  # seconds before the first retry of a shard; doubles each time


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
        # Made at the first shard, so that what goes wrong there reaches the driver as the exception that it is.
        self.make = lambda: worker(**arguments)
        self.worker: Worker | None = None

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


def pool_size(shards: int, gpus_each: int) -> int:
    """Actors that the cluster has room for, at most one a shard and at least one."""
    room = int(ray.cluster_resources().get("CPU", 1))
    if gpus_each:
        room = min(room, gpus() // gpus_each)
    return max(1, min(shards, room))


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
) -> Done:
    """Runs ``worker`` over every shard that ``folder`` has no marker of.

    Args:
        worker: the class of the worker; ``arguments`` go to its constructor in each actor.
        folder: the artifact; the shards lie in its ``subfolder``.
        retries: times that a shard is tried again after an exception or a dead actor.
        fingerprint: the worker's, see `pipeline.reuse.worker_fingerprint`.
        on_gpu: each actor asks for a GPU where the cluster has any, besides its CPU.

    Returns:
        Markers and summed counters of every shard, those of earlier attempts included, and the shards given up on.

    Raises:
        UserError: where a worker raised it: trying again cannot help.
    """
    folder = storage.join(folder, subfolder) if subfolder else folder
    done = finished(folder, shards, fingerprint)
    waiting = deque((shard, 0) for shard in shards if shard.id not in done)
    quarantined: list[dict[str, Any]] = []
    if waiting:
        pool = _Pool(worker, arguments, len(waiting), min(1, gpus()) if on_gpu else 0)
        try:
            with progress(label, len(shards), "shards") as update:
                update(len(done))
                for shard, marker, error in pool.drain(waiting, retries, (folder, subfolder, fingerprint)):
                    if marker is not None:
                        done[shard.id] = marker
                    else:
                        quarantined.append({"shard": shard.id, "reason": error})
                    update(len(done), f"{len(quarantined)} quarantined" if quarantined else "")
        finally:
            pool.close()
    result = Done(quarantined=sorted(quarantined, key=lambda item: item["shard"]))
    for index in sorted(shard.id for shard in shards if shard.id in done):
        result.shards.append(done[index])
        for name, count in done[index].counters.items():
            result.counters[name] = result.counters.get(name, 0) + count
    return result


class _Pool:
    """Actors that take one shard at a time; one that died is replaced."""

    def __init__(self, worker: type, arguments: dict[str, Any], shards: int, gpus_each: int) -> None:
        env = {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "TOKENIZERS_PARALLELISM": "false"}
        env["PYTHONWARNINGS"] = os.environ.get("PYTHONWARNINGS", "ignore")
        self.remote = ray.remote(_Actor).options(num_cpus=1, num_gpus=gpus_each, runtime_env={"env_vars": env})
        self.worker, self.arguments = worker, arguments
        self.idle = [self._start() for _ in range(pool_size(shards, gpus_each))]

    def _start(self) -> Any:
        return self.remote.remote(self.worker, self.arguments)

    def close(self) -> None:
        """Ends every idle actor; those at work end with their handles."""
        for actor in self.idle:
            ray.kill(actor)
        self.idle = []

    def drain(self, waiting: deque[tuple[Shard, int]], retries: int, place: tuple[str, str, str]) -> Any:
        """Yields (shard, marker or None, error) as shards finish or are given up on; ``place`` goes to `_Actor.run`."""
        running: dict[Any, tuple[Any, Shard, int]] = {}
        not_before: dict[int, float] = {}
        while waiting or running:
            for _ in range(len(waiting)):
                if not self.idle:
                    break
                shard, tries = waiting.popleft()
                if not_before.get(shard.id, 0) > time.monotonic():
                    waiting.append((shard, tries))
                    continue
                actor = self.idle.pop()
                running[actor.run.remote(shard, *place)] = (actor, shard, tries)
            ready, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
            if not running:
                time.sleep(0.1)
            for reference in ready:
                actor, shard, tries = running.pop(reference)
                try:
                    marker = ray.get(reference)
                    self.idle.append(actor)
                    yield shard, marker, ""
                    continue
                except RayTaskError as failure:
                    if isinstance(failure.cause, UserError):
                        raise UserError(str(failure.cause)) from failure
                    self.idle.append(actor)
                    error = f"{type(failure.cause).__name__}: {failure.cause}"
                except RayActorError as failure:
                    self.idle.append(self._start())
                    error = f"its process died: {str(failure).strip().splitlines()[0]}"
                if tries < retries:
                    not_before[shard.id] = time.monotonic() + BACKOFF * 2**tries
                    waiting.append((shard, tries + 1))
                else:
                    yield shard, None, error
