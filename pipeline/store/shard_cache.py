"""Reuse of shards across artifacts of a stage.

A stage whose fingerprint changed starts a new artifact. Shards with the same worker, arguments and input files are
linked from an earlier artifact of the stage, finished or not: a list with 1% more rows costs about 1% more work. This
is sound because a shard's worker reads only its constructor's arguments and the shard's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dataprep.io import storage
from pipeline.store.artifact import MANIFEST, Artifact, Manifest
from pipeline.store.fingerprint import collect_dependencies, hash_json
from pipeline.store.markers import Marker, read_markers, write_marker
from pipeline.store.run import Run


def worker_fingerprint(
    worker: type, arguments: Mapping[str, Any], whole: Iterable[Artifact], sources: Mapping[str, str]
) -> str:
    """Returns the hash of what all shards of a pass share: the worker's code, libraries and arguments.

    Args:
        whole: the inputs that are not split by shard, such as a model. They count by content; an argument that is a
            path into one of them counts by its relative path only.
        sources: path -> sha256 of files from outside the run that the stage reads.
    """
    code, versions = collect_dependencies(
        worker, [type(value) for value in arguments.values() if isinstance(value, BaseModel)]
    )
    contents = {artifact.folder: f"{artifact.manifest.stage}:{artifact.content}" for artifact in whole}
    values = {name: _to_json_value(value, contents) for name, value in arguments.items()}
    shared = {"arguments": values, "inputs": sorted(contents.values()), "sources": sorted(sources.values())}
    return hash_json({"code": code, "versions": versions} | shared)


def _to_json_value(value: Any, contents: Mapping[str, str]) -> Any:
    """Returns ``value`` as JSON-able data, paths into artifacts replaced; TypeError for types without a stable form."""
    if isinstance(value, BaseModel):
        return _to_json_value(value.model_dump(), contents)
    if is_dataclass(value) and not isinstance(value, type):
        return _to_json_value({item.name: getattr(value, item.name) for item in fields(value)}, contents)
    if isinstance(value, Mapping):
        return [[_to_json_value(key, contents), _to_json_value(item, contents)] for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(_to_json_value(item, contents) for item in value)
    if isinstance(value, list | tuple):
        return [_to_json_value(item, contents) for item in value]
    if isinstance(value, str | Path):
        for folder, content in contents.items():
            if str(value) == folder or str(value).startswith(folder + "/"):
                return content + str(value)[len(folder) :]
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"an argument of a shard worker is a {type(value).__name__}, which has no stable form")


class ShardCache:
    """The finished shards of a stage: those in its folder, and those of its earlier artifacts, finished or not.

    Args:
        subfolder: of the shards within an artifact ("": none).
        folder: of the stage's shards, ``subfolder`` included.
    """

    def __init__(self, run: Run, stage: str, subfolder: str, folder: str) -> None:
        self.folder, self.own = folder, read_markers(folder)
        self.unread = _list_earlier(run, stage, subfolder, folder)
        self.earlier: dict[str, list[tuple[str, Marker]]] = {}  # fingerprint -> what was read so far
        self.taken = 0  # shards that were linked from earlier artifacts

    def find(self, wanted: Mapping[int, str]) -> dict[int, Marker]:
        """Returns the markers by id of the finished ones among shards, given by id and fingerprint.

        Shards of earlier artifacts are linked into the folder.
        """
        own = {number: self.own.get(number) for number in wanted}
        found = {i: marker for i, marker in own.items() if marker is not None and marker.fingerprint == wanted[i]}
        for number, fingerprint in wanted.items():
            if number not in found and (marker := self._take_over(fingerprint)) is not None:
                found[number] = marker
                self.taken += 1
        return found

    def _take_over(self, fingerprint: str) -> Marker | None:
        """Links a shard of an earlier artifact; returns its marker, or None if there is none whose files are whole."""
        for source, marker in self.earlier.get(fingerprint, ()):
            if _link_shard(source, self.folder, marker):
                return marker
        for source, marker in self.unread:
            self.earlier.setdefault(marker.fingerprint, []).append((source, marker))
            if marker.fingerprint == fingerprint and _link_shard(source, self.folder, marker):
                return marker
        return None


def _list_earlier(run: Run, stage: str, subfolder: str, folder: str) -> Iterator[tuple[str, Marker]]:
    """Yields (folder, marker) of every finished shard in other artifacts of the stage."""
    for artifact in run.stage_folders(stage):
        source = storage.join(artifact, subfolder) if subfolder else artifact
        if source == folder:
            continue
        if storage.exists(path := storage.join(artifact, MANIFEST)):
            found = Manifest.from_json(storage.read_json(path)).markers()
        else:
            found = list(read_markers(source).values())
        yield from ((source, marker) for marker in found if marker.subfolder == subfolder)


def _link_shard(source: str, folder: str, marker: Marker) -> bool:
    """Links one shard; returns False if one of its files is missing or has another size."""
    for output in marker.outputs:
        if storage.size(storage.join(source, output.path)) != output.bytes:
            return False
    for output in marker.outputs:
        storage.duplicate(storage.join(source, output.path), storage.join(folder, output.path))
    write_marker(folder, marker)
    return True
