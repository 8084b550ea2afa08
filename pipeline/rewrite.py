"""Finished artifacts whose files were written again on purpose: their manifests made to agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from dataprep import storage
from pipeline.store import MANIFEST, Artifact, Output, Run


def update_manifest(
    run: Run, artifact: Artifact, new: Mapping[str, Output], gone: Collection[str] = (), redacted: int = 0
) -> None:
    """Writes an artifact's manifest with new hashes of some outputs, without others, and how many samples it lost.

    A redacted download shard is what its redacted listing shard gives: its marker says so, and a later run takes it
    over and asks no host again.
    """
    path = storage.join(artifact.folder, MANIFEST)
    value = storage.read_json(path)
    value["outputs"] = [output for output in value["outputs"] if output["path"] not in gone]
    for output in value["outputs"]:
        output.update(asdict(new.get(output["path"]) or Output(**output)))
    for marker in value.get("shards", []):
        for output in marker["outputs"]:  # its path is relative to where the shards lie
            if found := new.get(storage.join(marker["subfolder"], output["path"]).lstrip("/")):
                output.update(asdict(found) | {"path": output["path"]})
    if redacted:
        value["counters"]["redacted"] = redacted
    if artifact.manifest.stage == "download":
        _rebase(value, run.artifact("listing", artifact.manifest.inputs["listing"]))
    storage.write_json(path, value)


def _rebase(value: dict[str, Any], listing: Artifact | None) -> None:
    """Says in the markers of a download of which files its shards are made, now that those are redacted."""
    listed = {shard.id: shard.sha256 for shard in listing.shards} if listing else {}
    latest: dict[int, dict[str, str]] = {}  # of each shard, what the pass before wrote
    for marker in sorted(value.get("shards", []), key=lambda marker: (marker["id"], marker["subfolder"])):
        made_of, before = marker["sha256"], latest.get(marker["id"], {})
        current = {f"listing.{name}": sha256 for name, sha256 in listed.get(marker["id"], {}).items()}
        current |= {f"previous.{name}": sha256 for name, sha256 in before.items()}
        made_of.update({name: sha256 for name, sha256 in current.items() if name in made_of})
        latest[marker["id"]] = {item["path"].rpartition(".")[2]: item["sha256"] for item in marker["outputs"]}
