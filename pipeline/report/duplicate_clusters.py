"""Near duplicates that were dropped, beside the kept image that each of them resembles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.io.keys import split_key
from dataprep.io.parquet import read_table
from pipeline.report.images import RowKey, load_examples, read_first_dropped
from pipeline.store.artifact import Artifact

FILTERS = ("near_duplicate", "embedding_duplicate")  # their keys in `dataprep.filters.registry.FILTERS`
MEMBERS = 6  # shown per cluster


def collect_clusters(artifacts: Mapping[str, Artifact], count: int) -> list[dict[str, Any]]:
    """Returns up to ``count`` kept images with the near duplicates that were dropped for them.

    They are those of the first rows that each filter dropped, by column ``duplicate_of`` of the selection.
    """
    select = artifacts["select"]
    dropped = read_first_dropped(select)
    examples = [place for name in FILTERS for place in dropped.get(name, [])[:count]]
    originals = list(dict.fromkeys(_read_originals(select, examples).values()))[:count]
    members: dict[str, list[str]] = defaultdict(list)
    for key, original in _iterate_members(select, originals):
        members[original].append(key)
    shown = {original: members[original][:MEMBERS] for original in originals}
    hashes = _read_hashes(
        artifacts["annotate"], {key for original in originals for key in (original, *shown[original])}
    )
    found = []
    for original in originals:
        keys = [original, *shown[original]]
        cluster = load_examples(artifacts["download"], [(split_key(key)[0], key) for key in keys])
        if len(cluster) == len(keys):  # else one was forgotten since
            for item, key in zip(cluster[1:], keys[1:], strict=True):
                item["note"] = f"{(hashes[key] ^ hashes[original]).bit_count()} of 64 bits differ"
            found.append({"original": cluster[0], "duplicates": cluster[1:], "count": len(members[original])})
    return found


def _read_originals(select: Artifact, places: Collection[RowKey]) -> dict[str, str]:
    """Returns the row that each of the dropped rows repeats, by key, in order."""
    files = {shard.id: shard.files["parquet"] for shard in select.shards}
    wanted = {key for _, key in places}
    found: dict[str, str] = {}
    for shard in sorted({shard for shard, _ in places}):
        table = read_table(files[shard], "selection", ["key", "duplicate_of"])
        table = table.filter(pc.is_in(table["key"], pa.array(sorted(wanted), pa.string())))
        found |= dict(zip(table["key"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True))
    return {key: found[key] for _, key in places if found.get(key) is not None}  # forgotten ones are null


def _iterate_members(select: Artifact, originals: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, original) of the rows that near-duplicate filters dropped for one of ``originals``."""
    for shard in select.shards if originals else ():
        table = read_table(shard.files["parquet"], "selection", ["key", "reason", "duplicate_of"])
        table = table.filter(pc.is_in(table["duplicate_of"], pa.array(originals, pa.string())))
        for row in table.to_pylist():
            if row["reason"].split(":")[0] in FILTERS:
                yield row["key"], row["duplicate_of"]


def _read_hashes(annotate: Artifact, keys: Collection[str]) -> dict[str, int]:
    """Returns the perceptual hash of rows by key."""
    shards = {split_key(key)[0] for key in keys}
    found: dict[str, int] = {}
    for shard in annotate.shards:
        if shard.id in shards:
            table = read_table(shard.files["parquet"], "annotations", ["key", "phash"])
            table = table.filter(pc.is_in(table["key"], pa.array(sorted(keys), pa.string())))
            found |= dict(zip(table["key"].to_pylist(), table["phash"].to_pylist(), strict=True))
    return found
