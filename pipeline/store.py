"""The run folder: manifests, artifacts, run.json, events.jsonl and verification, on any fsspec URL.

RUN/run.json                                       what was asked, with what, and how it stands
RUN/events.jsonl                                   one line an event, appended
RUN/stages/<stage>/<fingerprint>/manifest.json     written last: its presence means the stage is finished
RUN/stages/<stage>/<fingerprint>/.shards/<id>.json the same for one shard of an unfinished stage
RUN/.lease/<n>.json                                on object stores: which driver holds the run, see pipeline.lease
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataprep import storage
from dataprep.schema import SHARD_DIGITS, UserError
from pipeline.fingerprint import digest

MANIFEST, MARKERS = "manifest.json", ".shards"
BATCH, BATCH_SIZE = "batch-", 500  # markers written once more, together
# A shard's file; one of a later pass over the stage's shards stands for those before it, which come first by name.
SHARD_NAME = re.compile(rf"^(?:pass-\d{{3}}/)?(\d{{{SHARD_DIGITS},}})\.(\w+)$")

_EVENTS = threading.Lock()  # stages run side by side


@dataclass(frozen=True)
class Output:
    """One file of a finished stage. ``path`` is relative to the artifact; ``rows`` is known for Parquet alone."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Shard:
    """One numbered piece of an artifact: ``files`` maps an extension ("tar", "parquet") to the file's full path."""

    id: int
    files: dict[str, str]
    sha256: dict[str, str] = field(default_factory=dict)  # of the same files, in hex


@dataclass(frozen=True)
class Marker:
    """That a shard is finished: of what it was made, what it wrote and what it counted."""

    id: int
    worker: str  # fingerprint of the worker with its arguments, see pipeline.reuse
    sha256: dict[str, str]  # of the files that it was made of
    outputs: list[Output]  # their paths are relative to where the shards lie
    counters: dict[str, int]
    subfolder: str = ""  # of the artifact

    @property
    def fingerprint(self) -> str:
        """What the shard is known by, in whatever artifact."""
        return shard_fingerprint(self.worker, self.id, self.sha256)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Marker:
        """The marker that ``asdict`` turned into ``value``."""
        return cls(**{**value, "outputs": [Output(**output) for output in value["outputs"]]})


def shard_fingerprint(worker: str, shard: int, sha256: dict[str, str]) -> str:
    """The fingerprint of one shard: of its worker's fingerprint, its number and the hashes of its files."""
    return digest([worker, shard, sha256])


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. ``code`` and ``versions`` are what the fingerprint covers besides config and inputs."""

    stage: str
    fingerprint: str
    inputs: dict[str, str]
    config: dict[str, Any]
    outputs: list[Output]
    counters: dict[str, int]
    seconds: float
    versions: dict[str, str]
    code: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # files from outside: path -> sha256
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    shards: list[Marker] = field(default_factory=list)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Manifest:
        """The manifest that ``asdict`` turned into ``value``."""
        outputs = [Output(**output) for output in value["outputs"]]
        shards = [Marker.from_json(item) for item in value.get("shards", ())]  # written by an older version: none
        return cls(**{**value, "outputs": outputs, "shards": shards})


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder, read through its manifest."""

    folder: str
    manifest: Manifest

    def path(self, name: str) -> str:
        """The full path of the output called ``name``."""
        return storage.join(self.folder, name)

    def has(self, name: str) -> bool:
        """Whether the stage wrote an output called ``name``."""
        return any(output.path == name for output in self.manifest.outputs)

    @cached_property
    def content(self) -> str:
        """A digest of every output's bytes, and of the files from outside that an output may only name."""
        outputs = {output.path: output.sha256 for output in self.manifest.outputs}
        return digest({"outputs": outputs, "sources": self.manifest.sources})

    @cached_property
    def shards(self) -> list[Shard]:
        """The numbered shards, in order."""
        found: dict[int, Shard] = {}
        for output in self.manifest.outputs:
            if match := SHARD_NAME.match(output.path):
                shard = found.setdefault(int(match[1]), Shard(int(match[1]), {}))
                shard.files[match[2]] = self.path(output.path)
                shard.sha256[match[2]] = output.sha256
        return [shard for _, shard in sorted(found.items())]

    def files(self, extension: str = "parquet") -> list[str]:
        """The full paths of every shard's file of one extension, in order."""
        return [shard.files[extension] for shard in self.shards]


def describe(folder: str, name: str) -> Output:
    """Hashes the file ``name`` of ``folder`` and counts its rows where it is Parquet."""
    path = storage.join(folder, name)
    sha256, size = storage.sha256_file(path)
    rows = None
    if name.endswith(".parquet"):
        with storage.local_copy(path) as local:
            rows = pq.read_metadata(local).num_rows
    return Output(name, size, sha256, rows)


def read_markers(folder: str) -> dict[int, Marker]:
    """The markers of the finished shards in ``folder``, by shard id."""
    path = storage.join(folder, MARKERS)
    names = storage.list_files(path)
    batches = [name for name in names if name.startswith(BATCH)]
    found = [item for name in batches for item in storage.read_json(storage.join(path, name))]
    have = {f"{item['id']:05d}.json" for item in found}
    alone = [storage.join(path, name) for name in names if not name.startswith(BATCH) and name not in have]
    found += [json.loads(data) for data in storage.read_many(alone)]
    return {marker.id: marker for marker in map(Marker.from_json, found)}


def write_marker(folder: str, marker: Marker) -> None:
    """Commits a shard of ``folder``: from here on it is finished."""
    storage.write_json(storage.join(folder, MARKERS, f"{marker.id:05d}.json"), asdict(marker))


class Index:
    """Writes the markers of a pass together, some hundreds a file, so that a resume need not read them one by one."""

    def __init__(self, folder: str, known: Iterable[int]) -> None:
        self.folder, self.count, self.fresh = folder, len(list(known)), list[Marker]()

    def add(self, marker: Marker) -> None:
        """Notes a shard that has been committed by its own marker."""
        self.fresh.append(marker)
        if len(self.fresh) == BATCH_SIZE:
            self.count += len(self.fresh)
            name = f"{BATCH}{self.count:08d}.json"
            content = json.dumps([asdict(one) for one in self.fresh]).encode()
            storage.write_bytes(storage.join(self.folder, MARKERS, name), content)
            self.fresh = []


class Run:
    """A run folder at ``root``."""

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root).rstrip("/")

    def path(self, *parts: str) -> str:
        """A path below the run folder."""
        return storage.join(self.root, *parts)

    def stage_folder(self, stage: str, fingerprint: str) -> str:
        """Where the stage ``stage`` with this fingerprint keeps its files."""
        return self.path("stages", stage, fingerprint)

    def artifact(self, stage: str, fingerprint: str) -> Artifact | None:
        """The finished stage, or None where it is not finished."""
        folder = self.stage_folder(stage, fingerprint)
        manifest = storage.read_or_none(storage.join(folder, MANIFEST))
        return None if manifest is None else Artifact(folder, Manifest.from_json(json.loads(manifest)))

    def stage_folders(self, stage: str) -> list[str]:
        """The folder of every artifact of ``stage``, finished or not, under whatever fingerprint."""
        folder = self.path("stages", stage)
        return [storage.join(folder, name) for name in storage.list_folders(folder)]

    def previous(self, stage: str) -> Manifest | None:
        """The manifest of ``stage`` as it was last finished, under whatever fingerprint."""
        finished = (self.read_record() or {}).get("stages", {}).get(stage, {}).get("finished")
        artifact = self.artifact(stage, finished) if finished else None
        return artifact.manifest if artifact else None

    def commit(self, manifest: Manifest) -> Artifact:
        """Publishes ``manifest``: from here on the stage is finished."""
        folder = self.stage_folder(manifest.stage, manifest.fingerprint)
        storage.write_json(storage.join(folder, MANIFEST), asdict(manifest))
        return Artifact(folder, manifest)

    def read_record(self) -> dict[str, Any] | None:
        """run.json, or None where there is none yet."""
        record = storage.read_or_none(self.path("run.json"))
        return None if record is None else json.loads(record)

    def record(self) -> dict[str, Any]:
        """run.json of a run that must be there; raises UserError where it is not."""
        if (record := self.read_record()) is None:
            raise UserError(f"{self.root}: no run here (run.json is missing); start one with `imagen-ray run CONFIG`")
        return record

    def artifacts(self) -> dict[str, Artifact]:
        """The finished stages that run.json names, by stage, in the pipeline's order."""
        found = {}
        for stage, entry in self.record()["stages"].items():
            if artifact := self.artifact(stage, entry["fingerprint"]):
                found[stage] = artifact
        return found

    def event(self, kind: str, **values: Any) -> None:
        """Appends a line to events.jsonl: time in UTC, the event's kind, and its values."""
        line = json.dumps({"time": now(), "event": kind, **values}, ensure_ascii=False) + "\n"
        path = self.path("events.jsonl")
        with _EVENTS:
            if storage.is_local(path):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(line)
            else:  # objects cannot be appended to; the log is small, and the driver is its only writer
                storage.write_bytes(path, (storage.read_or_none(path) or b"") + line.encode())

    def events(self) -> list[dict[str, Any]]:
        """The events so far."""
        return storage.read_json_lines(self.path("events.jsonl"))


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def verify(run: Run) -> Iterator[tuple[str, int, list[str]]]:
    """Hashes every output of every finished stage of ``run`` again.

    Yields:
        The stage, how many files it has, and a sentence for each that is missing or differs from its manifest.
    """
    for stage, artifact in run.artifacts().items():
        problems = []
        for output in artifact.manifest.outputs:
            path = artifact.path(output.path)
            if not storage.exists(path):
                problems.append(f"{path}: missing")
                continue
            sha256, size = storage.sha256_file(path)
            if (sha256, size) != (output.sha256, output.bytes):
                was = f"{output.bytes} bytes, sha256 {output.sha256[:12]}"
                problems.append(f"{path}: differs (is {size} bytes, sha256 {sha256[:12]}; was {was})")
        yield stage, len(artifact.manifest.outputs), problems
