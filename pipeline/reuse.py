"""Shards that need not be worked on again: each has a fingerprint of its own, and an earlier artifact may hold it.

A stage whose fingerprint changed starts a new artifact. Of its shards those whose worker, arguments and input files
are the same are linked from an earlier artifact of that stage, finished or not: a list with 1% more rows costs about
1% more work. That holds because a shard's worker sees nothing but its constructor's arguments and the shard's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dataprep import storage
from pipeline.fingerprint import digest, reached
from pipeline.store import MANIFEST, Artifact, Manifest, Marker, Run, read_markers, write_marker


def worker_fingerprint(
    worker: type, arguments: Mapping[str, Any], whole: Iterable[Artifact], sources: Mapping[str, str]
) -> str:
    """What all shards of a pass have in common: the worker's code, the libraries it reaches, what it is given.

    Args:
        whole: the inputs that are not handed out shard by shard, such as a model. They count by their content; an
            argument that is a path into one of them counts by no more than its place there.
        sources: path -> sha256 of files from outside that the stage reads.
    """
    code, versions = reached(worker, [type(value) for value in arguments.values() if isinstance(value, BaseModel)])
    contents = {artifact.folder: f"{artifact.manifest.stage}:{artifact.content}" for artifact in whole}
    plain = {name: _plain(value, contents) for name, value in arguments.items()}
    given = {"arguments": plain, "inputs": sorted(contents.values()), "sources": sorted(sources.values())}
    return digest({"code": code, "versions": versions} | given)


def _plain(value: Any, contents: Mapping[str, str]) -> Any:
    """``value`` as JSON-able data with paths into artifacts replaced; TypeError for what cannot be told apart."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(), contents)
    if is_dataclass(value) and not isinstance(value, type):
        return _plain({item.name: getattr(value, item.name) for item in fields(value)}, contents)
    if isinstance(value, Mapping):
        return [[_plain(key, contents), _plain(item, contents)] for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item, contents) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item, contents) for item in value]
    if isinstance(value, str | Path):
        for folder, content in contents.items():
            if str(value) == folder or str(value).startswith(folder + "/"):
                return content + str(value)[len(folder) :]
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"an argument of a shard worker is a {type(value).__name__}, which has no stable form")


def take_over(run: Run, stage: str, subfolder: str, folder: str, wanted: Mapping[int, str]) -> int:
    """Links into ``folder`` the shards of earlier artifacts of ``stage`` whose fingerprints are ``wanted``.

    Args:
        subfolder: where in an artifact the shards lie; ``folder`` includes it.
        wanted: shard id -> fingerprint, of the shards that ``folder`` does not have.

    Returns:
        How many were taken over; each has its marker now, as if it had been worked on here.
    """
    missing = dict(wanted)
    for source, marker in _earlier(run, stage, subfolder, folder) if missing else ():
        if missing.get(marker.id) == marker.fingerprint and _link(source, folder, marker):
            del missing[marker.id]
        if not missing:
            break
    return len(wanted) - len(missing)


def _earlier(run: Run, stage: str, subfolder: str, folder: str) -> Iterator[tuple[str, Marker]]:
    """(folder, marker) of every shard that is finished in another artifact of the stage."""
    for artifact in run.stage_folders(stage):
        source = storage.join(artifact, subfolder) if subfolder else artifact
        if source == folder:
            continue
        if storage.exists(path := storage.join(artifact, MANIFEST)):
            found = Manifest.from_json(storage.read_json(path)).shards
        else:
            found = list(read_markers(source).values())
        yield from ((source, marker) for marker in found if marker.subfolder == subfolder)


def _link(source: str, folder: str, marker: Marker) -> bool:
    """Takes over one shard; False where a file of it is not there any more, or not as long as it was."""
    for output in marker.outputs:
        if storage.size(storage.join(source, output.path)) != output.bytes:
            return False
    for output in marker.outputs:
        storage.duplicate(storage.join(source, output.path), storage.join(folder, output.path))
    write_marker(folder, marker)
    return True
