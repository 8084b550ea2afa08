"""Finished artifacts whose files were written again on purpose: their manifests made to agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dataprep import storage
from pipeline.store import MANIFEST, SHARD_NAME, Artifact, Output, Run


def update_manifest(run: Run, artifact: Artifact, new: Mapping[str, Output], redacted: int = 0) -> None:
    """Writes an artifact's manifest with new hashes of some outputs, and how many samples were taken out of it.

    A redacted download shard is what its redacted listing shard gives: its marker says so, and a later run takes it
    over and asks no host again.
    """
    path = storage.join(artifact.folder, MANIFEST)
    value = storage.read_json(path)
    _rehash(value, new)
    if redacted:
        value["counters"]["redacted"] = redacted
    listing = run.artifact("listing", artifact.manifest.inputs.get("listing", ""))
    if artifact.manifest.stage == "download" and listing is not None:
        hashes = {output.path: output.sha256 for output in listing.manifest.outputs if SHARD_NAME.match(output.path)}
        for marker in value.get("shards", []):
            if "listing.parquet" in marker["sha256"]:
                marker["sha256"]["listing.parquet"] = hashes[f"{marker['id']:05d}.parquet"]
    storage.write_json(path, value)


def _rehash(value: Any, new: Mapping[str, Output]) -> None:
    """Puts the new sizes and hashes wherever a manifest describes one of these files."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str) and value["path"] in new and "sha256" in value:
            value.update(asdict(new[value["path"]]))
        for item in value.values():
            _rehash(item, new)
    elif isinstance(value, list):
        for item in value:
            _rehash(item, new)
