"""Near duplicates that were dropped, beside the kept image that each of them resembles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.filters.near_duplicates import NearDuplicates, measure_thumbnail_distance
from dataprep.io.parquet import read_table
from pipeline.report.images import RowKey, load_examples, read_first_dropped
from pipeline.store.artifact import Artifact

FILTER = "near_duplicate"  # its key in `dataprep.filters.registry.FILTERS`
MEMBERS = 6  # shown per cluster


@dataclass
class HashedImage:
    """An image by its perceptual hash and thumbnail, and its row."""

    place: RowKey
    phash: np.uint64
    thumbnail_DC: np.ndarray
    original: tuple[int, HashedImage] | None = None  # differing bits, and the kept image
    members: dict[RowKey, int] = field(default_factory=dict)  # of a kept image: dropped rows and their differing bits


@dataclass(frozen=True)
class HashedShard:
    """Images of one shard, as columns."""

    shard: int
    key_N: pa.Array
    phash_N: np.ndarray
    thumbnail_NDC: np.ndarray

    def get_image(self, row: int) -> HashedImage:
        """Returns the image in ``row``."""
        return HashedImage((self.shard, self.key_N[row].as_py()), self.phash_N[row], self.thumbnail_NDC[row])


def collect_clusters(artifacts: Mapping[str, Artifact], count: int) -> list[dict[str, Any]]:
    """Returns up to ``count`` kept images with the near duplicates that were dropped for them.

    The selection records the filter of a dropped row, not what it resembles. That is searched here by the same rule: a
    kept row before it, within ``near_duplicate_bits`` of the hash and ``near_duplicate_colour`` of the thumbnail.
    """
    rules = artifacts["select"].manifest.config.get("select", {})
    bits, colour = rules.get("near_duplicate_bits"), rules.get("near_duplicate_colour")
    if bits is None or colour is None:
        return []
    wanted = {*read_first_dropped(artifacts["select"]).get(FILTER, [])[:count]}
    examples = [
        images.get_image(row)
        for images, _ in _read_shards(artifacts)
        for row in range(len(images.key_N))
        if (images.shard, images.key_N[row].as_py()) in wanted
    ]
    _find_originals(artifacts, examples, bits, colour)
    originals = {item.original[1].place: item.original[1] for item in examples if item.original}
    _gather_members(artifacts, list(originals.values()), bits, colour)
    found = []
    for original in originals.values():
        shown = sorted(original.members, key=lambda place: (original.members[place], place))[:MEMBERS]
        cluster = load_examples(artifacts["download"], [original.place, *shown])
        if len(cluster) == 1 + len(shown):  # else one was forgotten since
            for item, place in zip(cluster[1:], shown, strict=True):
                item["note"] = f"{original.members[place]} of 64 bits differ"
            found.append({"original": cluster[0], "duplicates": cluster[1:], "count": len(original.members)})
    return found


def _read_shards(artifacts: Mapping[str, Artifact]) -> Iterator[tuple[HashedShard, HashedShard]]:
    """Yields what near_duplicate dropped and what was kept of each shard."""
    selection = {shard.id: shard.files["parquet"] for shard in artifacts["select"].shards}
    for shard in artifacts["annotate"].shards:
        if shard.id not in selection:
            continue
        table = read_table(shard.files["parquet"], "annotations", ["key", *NearDuplicates.columns])
        verdicts = read_table(selection[shard.id], "selection", ["keep", "reason"])
        near_N = pc.fill_null(pc.starts_with(verdicts["reason"], f"{FILTER}:"), False)
        yield _hash_table(shard.id, table.filter(near_N)), _hash_table(shard.id, table.filter(verdicts["keep"]))


def _hash_table(shard: int, table: pa.Table) -> HashedShard:
    columns = NearDuplicates(0, 0).extract(table)
    return HashedShard(shard, table["key"].combine_chunks(), columns["phash"], columns["thumbnail"])


def _find_originals(artifacts: Mapping[str, Artifact], examples: list[HashedImage], bits: int, colour: float) -> None:
    """Sets each example's ``original``: the nearest kept image before it."""
    for _, kept in _read_shards(artifacts):
        for example in examples:
            for apart, found in _find_similar(example, kept, bits, colour):
                if found.place < example.place and (example.original is None or apart < example.original[0]):
                    example.original = apart, found


def _gather_members(artifacts: Mapping[str, Artifact], originals: list[HashedImage], bits: int, colour: float) -> None:
    """Fills each original's ``members``: the dropped images after it that resemble it."""
    for dropped, _ in _read_shards(artifacts):
        for original in originals:
            for apart, found in _find_similar(original, dropped, bits, colour):
                if found.place > original.place:
                    original.members[found.place] = apart


def _find_similar(one: HashedImage, images: HashedShard, bits: int, colour: float) -> Iterator[tuple[int, HashedImage]]:
    """Yields the images of ``images`` that resemble ``one``, with the number of differing bits."""
    apart_N = np.bitwise_count(images.phash_N ^ one.phash)
    for row in np.flatnonzero(apart_N <= bits).tolist():
        if measure_thumbnail_distance(images.thumbnail_NDC[row : row + 1], one.thumbnail_DC[None])[0] <= colour:
            yield int(apart_N[row]), images.get_image(row)
