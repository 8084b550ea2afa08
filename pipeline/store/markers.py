"""Completion records of shards, from which an unfinished stage resumes.

Each shard's `Marker` is written as soon as its outputs are published (``.shards/<id>.json``), and again in batches, so
that resuming thousands of shards reads a few files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dataprep.io import storage
from dataprep.io.keys import shard_name
from pipeline.store.fingerprint import hash_json

MARKERS = ".shards"  # folder below a stage's folder (or below its subfolder) while the stage is unfinished
BATCH_PREFIX, BATCH_SIZE = "batch-", 500  # of file names; markers per batch file


@dataclass(frozen=True)
class Output:
    """A file of a stage. ``path`` is relative to the artifact's folder; ``rows`` is set for Parquet only."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Marker:
    """Completion record of a shard: input hashes, outputs, counters."""

    id: int
    worker: str  # its fingerprint, see `pipeline.store.shard_cache.worker_fingerprint`
    sha256: dict[str, str]  # of the input files, by name in the shard
    outputs: list[Output]
    counters: dict[str, int]
    subfolder: str = ""  # of the artifact; a later pass (``pass-NNN``) overrides the first

    @property
    def fingerprint(self) -> str:
        """The shard's fingerprint, which identifies it in any artifact."""
        return shard_fingerprint(self.worker, self.id, self.sha256)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Marker:
        """Returns the marker that ``asdict`` turned into ``value``."""
        return cls(**{**value, "outputs": [Output(**output) for output in value["outputs"]]})


def shard_fingerprint(worker: str, shard: int, sha256: dict[str, str]) -> str:
    """Returns a shard's fingerprint: the hash of its worker's fingerprint, its number and its input hashes."""
    return hash_json([worker, shard, sha256])


def read_markers(folder: str) -> dict[int, Marker]:
    """Returns the markers of the finished shards in ``folder``, by shard id."""
    path = storage.join(folder, MARKERS)
    names = storage.list_files(path)
    batches = [name for name in names if name.startswith(BATCH_PREFIX)]
    found = [item for name in batches for item in storage.read_json(storage.join(path, name))]
    have = {shard_name(item["id"], "json") for item in found}
    alone = [storage.join(path, name) for name in names if not name.startswith(BATCH_PREFIX) and name not in have]
    found += [json.loads(data) for data in storage.read_many(alone)]
    return {marker.id: marker for marker in map(Marker.from_json, found)}


def write_marker(folder: str, marker: Marker) -> None:
    """Commits a shard whose outputs are published in ``folder``."""
    storage.write_json(storage.join(folder, MARKERS, shard_name(marker.id, "json")), asdict(marker))


class MarkerBatches:
    """Writes the markers of a pass again, `BATCH_SIZE` per file, so that a resume need not read them one by one."""

    def __init__(self, folder: str, known: Iterable[int]) -> None:
        self.folder, self.count, self.pending = folder, len(list(known)), list[Marker]()

    def add(self, marker: Marker) -> None:
        """Adds the marker of a committed shard."""
        self.pending.append(marker)
        if len(self.pending) == BATCH_SIZE:
            self.count += len(self.pending)
            name = f"{BATCH_PREFIX}{self.count:08d}.json"
            content = json.dumps([asdict(one) for one in self.pending]).encode()
            storage.write_bytes(storage.join(self.folder, MARKERS, name), content)
            self.pending = []
