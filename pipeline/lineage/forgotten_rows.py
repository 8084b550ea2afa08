"""Decides which rows of which artifacts `forget` removes, and which stages have learned from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataprep.io.errors import UserError
from dataprep.io.keys import sample_key, split_key
from dataprep.io.redact import FORGOTTEN_FILE, Forgotten, hash_url
from pipeline.lineage.stage_folders import LISTED, StageFolder
from pipeline.lineage.trace import find_sample, read_columns
from pipeline.stages.base import Rows
from pipeline.stages.graph import stage_type
from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.run import Run


def hash_targets(run: Run, targets: Sequence[str]) -> dict[str, str]:
    """Returns URL hash -> the target that gave it. A key stands for the URL of its row in the newest list.

    Raises:
        UserError: a target is not in the run, or its row has no URL.
    """
    artifacts = run.artifacts()
    seeds = {}
    for target in targets:
        if "://" in target:
            seeds[hash_url(target)] = target
            continue
        shard, row = find_sample(run, artifacts, target)[0]  # a file name of a folder, or a key
        files = {item.id: item.files for item in (artifacts.get("download") or artifacts["listing"]).shards}
        url = read_columns(files[shard]["parquet"], ["url"])["url"][row].as_py()
        if url:
            seeds[hash_url(url)] = target
        elif not any(target in keys for keys in Forgotten.read(run.path(FORGOTTEN_FILE)).rows.values()):
            raise UserError(f"{target}: this row has no URL to remember it by; remove it from the list and run again")
    return seeds


def decide_forgotten(
    folders: Sequence[StageFolder], before: Forgotten, seeds: Mapping[str, str]
) -> tuple[Forgotten, list[str]]:
    """Returns what is forgotten from now on, and the targets that the run does not have.

    Goes from the seeds to their stored images, to every row with the same bytes, and to the URLs of these rows.
    """
    urls, images = set(before.urls) | set(seeds), set(before.images)
    lists = [folder for folder in folders if folder.stage in LISTED and folder.artifact]
    images |= {image for row in _read_rows(lists) if row.url in urls and (image := row.image)}
    urls |= {row.url for row in _read_rows(lists) if row.url and row.image in images}
    rows: dict[str, set[str]] = defaultdict(set, {name: set(keys) for name, keys in before.rows.items()})
    downloaded: dict[str, set[str]] = defaultdict(set)
    present = set()
    for row in _read_rows(lists):
        if row.url in urls or row.image in images:
            rows[row.folder].add(row.key)
            present.add(row.url)
            if row.image:
                downloaded[row.folder].add(row.key)
    known = {(item["stage"], item["fingerprint"]): item for item in before.trained}
    for item in _list_trained(folders, downloaded, rows):
        known.setdefault((item["stage"], item["fingerprint"]), item)
    trained = [known[name] for name in sorted(known)]
    sorted_rows = {name: sorted(keys) for name, keys in rows.items()}
    forgotten = Forgotten(frozenset(urls), frozenset(images), sorted_rows, trained)
    return forgotten, [target for seed, target in seeds.items() if seed not in present | before.urls]


@dataclass(frozen=True)
class _ListedRow:
    folder: str
    key: str
    url: str  # hash; empty for a row without a URL
    image: str | None  # sha256 of the stored image


def _read_rows(lists: Sequence[StageFolder]) -> Iterator[_ListedRow]:
    """Yields every row of the listings and downloads."""
    for folder in lists:
        assert folder.artifact is not None
        for shard in folder.artifact.shards:
            table = read_columns(shard.files["parquet"], ["url", "sha256"])
            images = table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * table.num_rows
            # A listing's own sha256 column comes from the source: the hash of the original file.
            images = images if folder.stage == "download" else [None] * table.num_rows
            for row, (url, image) in enumerate(zip(table["url"].to_pylist(), images, strict=True)):
                key = sample_key(shard.id, row)
                yield _ListedRow(folder.name, key, hash_url(url) if url else "", image)


def _list_trained(
    folders: Sequence[StageFolder], downloaded: Mapping[str, set[str]], rows: Mapping[str, set[str]]
) -> Iterator[dict[str, str]]:
    """Yields the training stages whose inputs hold a forgotten sample."""
    by_name = {folder.name: folder for folder in folders}
    for folder in folders:
        kind = stage_type(folder.stage)
        if kind is None or kind.learned is None or not any(rows.values()):
            continue
        entry = {"stage": folder.stage, "fingerprint": folder.fingerprint}
        if folder.artifact is None:
            yield entry | {"state": "unfinished, may have had them"}
            continue
        manifest = folder.artifact.manifest
        try:
            learning = kind.learned(manifest)
        except UserError:
            yield entry | {"state": "unreadable, may have had them"}
            continue
        if learning is None:
            continue
        keys = downloaded.get(f"download/{_find_download(manifest, by_name)}", set())
        if learning.rows is Rows.ALIGNED:
            used = bool(keys)
        else:
            pack = by_name.get(f"pack/{manifest.inputs.get('pack')}")
            used = pack is not None and pack.artifact is not None and _contains_any(pack.artifact, keys)
        if used:
            yield entry | {"state": "finished"}


def _contains_any(pack: Artifact, keys: set[str]) -> bool:
    shards = {split_key(key)[0] for key in keys}
    files = [shard.files["parquet"] for shard in pack.shards if shard.id in shards]
    wanted = pa.array(sorted(keys), pa.string())
    return any(pa.compute.any(pa.compute.is_in(read_columns(path, ["key"])["key"], wanted)).as_py() for path in files)


def _find_download(manifest: Manifest, by_name: Mapping[str, StageFolder]) -> str | None:
    """Returns the fingerprint of the download that an artifact is derived from, through any number of stages."""
    if "download" in manifest.inputs:
        return manifest.inputs["download"]
    for stage, fingerprint in manifest.inputs.items():
        parent = by_name.get(f"{stage}/{fingerprint}")
        if parent and parent.artifact and (found := _find_download(parent.artifact.manifest, by_name)):
            return found
    return None


def find_keys(folder: StageFolder, folders: Sequence[StageFolder], forgotten: Forgotten) -> set[str]:
    """Returns the keys of the forgotten samples in a stage folder."""
    all_keys = {key for keys in forgotten.rows.values() for key in keys}
    if folder.artifact is None:
        return all_keys  # its inputs are unknown; redoing a shard costs little
    if folder.stage in LISTED:
        return set(forgotten.rows.get(folder.name, ()))
    source = _find_download(folder.artifact.manifest, {item.name: item for item in folders})
    # If the folder of its download was deleted, all keys: rather one row too many.
    return set(forgotten.rows.get(f"download/{source}", () if source else all_keys))


def count_current_rows(run: Run, forgotten: Forgotten) -> int:
    """Returns the number of forgotten rows in the newest list."""
    current = run.artifacts()
    names = [f"{stage}/{current[stage].manifest.fingerprint}" for stage in LISTED if stage in current]
    return max([len(forgotten.rows.get(name, ())) for name in names], default=0)
