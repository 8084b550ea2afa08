"""Removes forgotten samples from the files of a run: shards, images, logs."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dataprep.io import storage
from dataprep.io.keys import shard_name, split_key
from dataprep.io.redact import Forgotten, hash_url, redact_parquet, redact_tar
from pipeline.lineage.forgotten_rows import find_keys
from pipeline.lineage.stage_folders import StageFolder
from pipeline.lineage.trace import read_columns
from pipeline.store.artifact import FORGOTTEN_ROWS, MANIFEST, SHARD_FILE, Artifact, ShardRecord, describe_file
from pipeline.store.markers import BATCH_PREFIX, MARKERS, Output
from pipeline.store.run import Run

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLE_FILES = re.compile(r"tfevents|^samples/.+\.png$|^features/.+\.parquet$")  # may show samples, beside the shards
URL = re.compile(rb"https?://[^\s\"'<>\\]+")


def redact_folder(run: Run, folder: StageFolder, keys: set[str], dry_run: bool) -> tuple[int, int]:
    """Redacts the files of a stage folder and its manifest; returns the numbers of rows and files that changed."""
    if folder.artifact is None:
        return _delete_shards(run, folder, keys, dry_run)
    artifact, by_shard = folder.artifact, defaultdict(set)
    for key in keys:
        by_shard[split_key(key)[0]].add(key)
    new: dict[str, Output] = {}
    row_count = file_count = gone = 0
    for output in artifact.manifest.outputs:
        match = SHARD_FILE.match(output.path)
        if match is None or int(match[1]) not in by_shard:
            continue
        rows = _redact_file(artifact.path(output.path), int(match[1]), by_shard[int(match[1])], dry_run)
        file_count += rows > 0
        row_count += rows if match[2] == "parquet" else 0
        if not dry_run and (described := describe_file(artifact.folder, output.path)) != output:
            new[output.path] = described  # redacted now, or by a call that was killed before it updated the manifest
            gone += (output.rows or 0) - (described.rows or 0)
    if new:
        gone += artifact.manifest.counters.get(FORGOTTEN_ROWS, 0)
        counters = {"redacted": len(keys)} | ({FORGOTTEN_ROWS: gone} if gone else {})
        redacted = artifact.replace_outputs(new, (), **counters)
        if folder.stage == "download":
            _update_input_hashes(run, redacted)
    return row_count, file_count


def _update_input_hashes(run: Run, download: Artifact) -> None:
    """Updates the input hashes in a redacted download's shard records.

    Downloading a redacted listing shard would give the redacted download shard. So later runs reuse it and request
    nothing from the hosts again.
    """
    listing = run.artifact("listing", download.manifest.inputs["listing"])
    listed = {shard.id: shard.sha256 for shard in listing.shards} if listing else {}
    outputs = {output.path: output.sha256 for output in download.manifest.outputs}
    latest: dict[int, dict[str, str]] = {}  # shard -> extension -> hash of the previous pass's output
    updated: list[ShardRecord] = []
    for record in sorted(download.manifest.shards, key=lambda record: (record.id, record.subfolder)):
        current = {f"listing.{name}": sha256 for name, sha256 in listed.get(record.id, {}).items()}
        current |= {f"previous.{name}": sha256 for name, sha256 in latest.get(record.id, {}).items()}
        updated.append(replace(record, sha256={name: current.get(name, old) for name, old in record.sha256.items()}))
        latest[record.id] = {path.rpartition(".")[2]: outputs[path] for path in record.outputs if path in outputs}
    order = {(record.id, record.subfolder): place for place, record in enumerate(download.manifest.shards)}
    download.rewrite_manifest(shards=sorted(updated, key=lambda record: order[record.id, record.subfolder]))


def delete_sample_files(
    run: Run, folders: Sequence[StageFolder], forgotten: Forgotten, dry_run: bool
) -> Iterator[tuple[str, int, int]]:
    """Deletes files that show samples but are not shards; other files hold their figures too.

    Yields the artifact's name, 0 rows, and the number of files.
    """
    for folder in folders:
        deleted = _find_sample_files(run, folder, find_keys(folder, folders, forgotten), forgotten)
        if deleted:
            yield folder.name, 0, len(deleted)
        if dry_run:
            continue
        for name in deleted:
            storage.remove(storage.join(run.stage_folder(folder.stage, folder.fingerprint), name))
        # Includes files deleted by a call that was killed before it updated the manifest.
        kept = {*folder.files} - {*deleted}
        outputs = folder.artifact.manifest.outputs if folder.artifact else []
        gone = [output.path for output in outputs if SAMPLE_FILES.search(output.path) and output.path not in kept]
        if gone and folder.artifact:
            folder.artifact.replace_outputs({}, gone)


def _find_sample_files(run: Run, folder: StageFolder, keys: set[str], forgotten: Forgotten) -> list[str]:
    """Returns image grids and TensorBoard files that contain true images, and features of validation images."""
    path = run.stage_folder(folder.stage, folder.fingerprint)
    names = sorted(name for name in folder.files if SAMPLE_FILES.search(name))
    if folder.stage == "evaluate":
        return [name for name in names if keys & {*read_columns(storage.join(path, name), ["id"])["id"].to_pylist()}]
    trained = any(
        (item["stage"], item["fingerprint"]) == (folder.stage, folder.fingerprint) for item in forgotten.trained
    )
    return [name for name in names if trained and PNG_SIGNATURE in storage.read_bytes(storage.join(path, name))]


def _redact_file(path: str, shard: int, keys: set[str], dry_run: bool) -> int:
    """Redacts a shard's tar or Parquet file; returns the number of rows that changed."""
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch, storage.local_copy(path) as local:
        target = Path(scratch) / Path(path).name
        tar = path.endswith(".tar")
        rows = redact_tar(local, target, keys) if tar else redact_parquet(local, target, shard, keys)
        if target.exists() and not dry_run:
            storage.publish(target, path)
    return rows


def _delete_shards(run: Run, folder: StageFolder, keys: set[str], dry_run: bool) -> tuple[int, int]:
    """Deletes shards of an unfinished stage that may hold a sample; a resume makes them again."""
    shards = {shard_name(split_key(key)[0]) for key in keys}
    files = [name for name in folder.files if Path(name).name.partition(".")[0] in shards]
    files = [] if folder.stage.startswith("train.") else files
    # Batches repeat the markers of deleted shards; the other shards have markers of their own.
    batches = [name for name in folder.files if files and re.search(rf"{re.escape(MARKERS)}/{BATCH_PREFIX}", name)]
    for name in [*files, *batches] if not dry_run else []:
        storage.remove(storage.join(run.stage_folder(folder.stage, folder.fingerprint), name))
    return 0, len(files)


def redact_texts(run: Run, folders: Sequence[StageFolder], forgotten: Forgotten) -> None:
    """Removes forgotten URLs from logs and manifests, and temporary files of killed writers."""

    def redact_url(match: re.Match[bytes]) -> bytes:
        found = match[0].decode("utf-8", "replace")
        return b"[forgotten]" if {hash_url(found), hash_url(found.rstrip(".,;:)]"))} & forgotten.urls else match[0]

    names = [run.path(name) for name in ("run.json", "events.jsonl")]
    names += [folder.artifact.path(MANIFEST) for folder in folders if folder.artifact]
    for path in names:
        before = storage.read_bytes(path) if storage.exists(path) else b""
        after = URL.sub(redact_url, before)
        if after != before:
            storage.write_bytes(path, after)
    fs, root = storage.filesystem(run.root)
    for name in fs.find(root):
        if str(name).endswith(".tmp"):  # this process holds the run's lock: no one is writing it
            fs.rm_file(name)
