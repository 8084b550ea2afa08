"""A finished stage: manifest, output files and shards."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow.parquet as pq

from dataprep.io import storage
from dataprep.io.keys import SHARD_DIGITS
from pipeline.store.fingerprint import hash_json
from pipeline.store.markers import Marker, Output

MANIFEST = "manifest.json"
FORGOTTEN_ROWS = "forgotten_rows"  # counter of the rows that `imagen-ray forget` took out of the tables
SHARD_FILE = re.compile(rf"^(?:pass-\d{{3}}/)?(\d{{{SHARD_DIGITS},}})\.(\w+)$")  # within an artifact


@dataclass(frozen=True)
class Shard:
    """A numbered part of an artifact.

    ``files`` and ``sha256`` (hex) are keyed by extension ("tar", "parquet"), or by ``<stage>.<extension>`` where shards
    of several stages are joined.
    """

    id: int
    files: dict[str, str]
    sha256: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_marker(cls, folder: str, marker: Marker) -> Shard:
        """Returns a committed shard of the artifact in ``folder``, which may be unfinished; see `Artifact.shards`."""
        shard = cls(marker.id, {})
        for output in marker.outputs:
            path = output_path(marker.subfolder, output.path)
            if match := SHARD_FILE.match(path):
                shard.files[match[2]] = storage.join(folder, path)
                shard.sha256[match[2]] = output.sha256
        return shard


@dataclass(frozen=True)
class ShardRecord:
    """A `Marker` as stored in a manifest: `Manifest.outputs` already describes its files."""

    id: int
    worker: str
    sha256: dict[str, str]
    outputs: list[str]  # paths in the artifact
    counters: dict[str, int]
    subfolder: str = ""

    @classmethod
    def from_marker(cls, marker: Marker) -> ShardRecord:
        """Returns the record of a finished shard."""
        paths = [output_path(marker.subfolder, output.path) for output in marker.outputs]
        return cls(marker.id, marker.worker, marker.sha256, paths, marker.counters, marker.subfolder)

    def to_marker(self, outputs: Mapping[str, Output]) -> Marker:
        """Returns the marker, given the artifact's outputs by path."""
        start = len(self.subfolder) + 1 if self.subfolder else 0
        own = [replace(outputs[path], path=path[start:]) for path in self.outputs]
        return Marker(self.id, self.worker, self.sha256, own, self.counters, self.subfolder)


def output_path(subfolder: str, name: str) -> str:
    """Returns the path in the artifact of the file ``name`` in ``subfolder`` ("": the artifact's own folder)."""
    return storage.join(subfolder, name) if subfolder else name


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. The fingerprint covers config, inputs, sources, code and versions."""

    stage: str
    fingerprint: str
    inputs: dict[str, str]  # stage -> fingerprint
    config: dict[str, Any]  # config key -> value as JSON, see `pipeline.stages.base.StageConfig`
    outputs: list[Output]
    counters: dict[str, int]
    seconds: float
    versions: dict[str, str]
    code: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # path of a file from outside the run -> sha256
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    shards: list[ShardRecord] = field(default_factory=list)
    kind: str = "data"  # for the report, see `pipeline.stages.base.StageType`
    counter: str = "rows"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Manifest:
        """Returns the manifest that ``asdict`` turned into ``value``."""
        outputs = [Output(**output) for output in value["outputs"]]
        return cls(**{**value, "outputs": outputs, "shards": [ShardRecord(**item) for item in value["shards"]]})

    def markers(self) -> list[Marker]:
        """Returns the markers of all shards whose files are still outputs."""
        outputs = {output.path: output for output in self.outputs}
        return [record.to_marker(outputs) for record in self.shards if outputs.keys() >= set(record.outputs)]


@dataclass(frozen=True)
class Artifact:
    """The folder of a finished stage, read through its manifest."""

    folder: str
    manifest: Manifest

    def path(self, name: str) -> str:
        """Returns the full path of the output ``name``."""
        return storage.join(self.folder, name)

    def has(self, name: str) -> bool:
        """Returns whether the stage wrote an output ``name``."""
        return any(output.path == name for output in self.manifest.outputs)

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON output."""
        return storage.read_json(self.path(name))

    @cached_property
    def content(self) -> str:
        """Hash of all outputs, and of the source files that an output may only refer to."""
        outputs = {output.path: output.sha256 for output in self.manifest.outputs}
        return hash_json({"outputs": outputs, "sources": self.manifest.sources})

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards by id. Files of retry passes (``pass-NNN/``) override those of earlier passes."""
        found: dict[int, Shard] = {}
        for output in self.manifest.outputs:  # sorted by path: passes come last
            if match := SHARD_FILE.match(output.path):
                shard = found.setdefault(int(match[1]), Shard(int(match[1]), {}))
                shard.files[match[2]] = self.path(output.path)
                shard.sha256[match[2]] = output.sha256
        return [shard for _, shard in sorted(found.items())]

    def files(self, extension: str = "parquet") -> list[str]:
        """Returns the full path of each shard's file with this extension, in order of shard id."""
        return [shard.files[extension] for shard in self.shards]

    def replace_outputs(self, new: Mapping[str, Output], gone: Collection[str] = (), **counters: int) -> Artifact:
        """Updates the stored manifest after files were rewritten (``new``, by path) or deleted (``gone``)."""
        manifest = self.read_manifest()
        outputs = [new.get(output.path, output) for output in manifest.outputs if output.path not in gone]
        return self.rewrite_manifest(outputs=outputs, counters=manifest.counters | counters)

    def rewrite_manifest(self, **changes: Any) -> Artifact:
        """Replaces fields of the stored manifest, atomically."""
        manifest = replace(self.read_manifest(), **changes)
        storage.write_json(self.path(MANIFEST), asdict(manifest))
        return Artifact(self.folder, manifest)

    def read_manifest(self) -> Manifest:
        """Returns the manifest as it is stored now; another `Artifact` object may have rewritten it."""
        return Manifest.from_json(storage.read_json(self.path(MANIFEST)))


def describe_file(folder: str, name: str) -> Output:
    """Returns hash, size and (for Parquet) row count of the file ``name`` in ``folder``."""
    path = storage.join(folder, name)
    sha256, size = storage.sha256_file(path)
    rows = None
    if name.endswith(".parquet"):
        with storage.local_copy(path) as local:
            rows = pq.read_metadata(local).num_rows
    return Output(name, size, sha256, rows)
