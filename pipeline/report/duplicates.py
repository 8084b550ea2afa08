"""Near duplicates that were dropped, beside the picture that each of them looks like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.filters.near import NearDuplicates, thumbnail_distance
from dataprep.schema import read_table
from pipeline.report.images import Place, first_dropped, pictures_at
from pipeline.store import Artifact

FILTER = NearDuplicates.name
MEMBERS = 6  # shown of a cluster


@dataclass
class Look:
    """A picture by its perceptual hash and its thumbnail, and where it is in the list."""

    place: Place
    phash: np.uint64
    thumbnail_DC: np.ndarray
    original: tuple[int, Look] | None = None  # bits apart, and the kept picture
    members: dict[Place, int] = field(default_factory=dict)  # of a kept picture: dropped ones and their bits


@dataclass(frozen=True)
class Block:
    """Pictures of one shard, as columns."""

    shard: int
    key_N: pa.Array
    phash_N: np.ndarray
    thumbnail_NDC: np.ndarray

    def look(self, row: int) -> Look:
        """One of them."""
        return Look((self.shard, self.key_N[row].as_py()), self.phash_N[row], self.thumbnail_NDC[row])


def clusters(artifacts: Mapping[str, Artifact], count: int) -> list[dict[str, Any]]:
    """Up to ``count`` kept pictures that near duplicates were dropped for: the picture, its duplicates, how many.

    The selection says of a dropped row no more than the filter. What it looks like is found here by the same rule: a
    kept row before it, within so many bits of the hash and so many grey levels of the thumbnail.
    """
    rules = artifacts["select"].manifest.config.get("select", {})
    bits, colour = rules.get("near_duplicate_bits"), rules.get("near_duplicate_colour")
    if bits is None or colour is None:
        return []
    wanted = {*first_dropped(artifacts["select"], count).get(FILTER, [])[:count]}
    examples = [
        block.look(row)
        for block, _ in _blocks(artifacts)
        for row in range(len(block.key_N))
        if (block.shard, block.key_N[row].as_py()) in wanted
    ]
    _nearest(artifacts, examples, bits, colour)
    originals = {look.original[1].place: look.original[1] for look in examples if look.original}
    _gather(artifacts, list(originals.values()), bits, colour)
    found = []
    for original in originals.values():
        shown = sorted(original.members, key=lambda place: (original.members[place], place))[:MEMBERS]
        pictures = pictures_at(artifacts["download"], [original.place, *shown])
        if len(pictures) == 1 + len(shown):  # else one is forgotten by now
            for item, place in zip(pictures[1:], shown, strict=True):
                item["note"] = f"{original.members[place]} of 64 bits apart"
            found.append({"original": pictures[0], "duplicates": pictures[1:], "count": len(original.members)})
    return found


def _blocks(artifacts: Mapping[str, Artifact]) -> Iterator[tuple[Block, Block]]:
    """Of each shard: what near_duplicate dropped, and what was kept."""
    selection = {shard.id: shard.files["parquet"] for shard in artifacts["select"].shards}
    for shard in artifacts["annotate"].shards:
        if shard.id not in selection:
            continue
        table = read_table(shard.files["parquet"], "annotations", ["key", *NearDuplicates.columns])
        verdicts = read_table(selection[shard.id], "selection", ["keep", "reason"])
        near_N = pc.fill_null(pc.starts_with(verdicts["reason"], f"{FILTER}:"), False)
        yield _block(shard.id, table.filter(near_N)), _block(shard.id, table.filter(verdicts["keep"]))


def _block(shard: int, table: pa.Table) -> Block:
    columns = NearDuplicates(0, 0).keys(table)
    return Block(shard, table["key"].combine_chunks(), columns["phash"], columns["thumbnail"])


def _nearest(artifacts: Mapping[str, Artifact], examples: list[Look], bits: int, colour: float) -> None:
    """Notes for each example the kept picture before it that it is nearest to."""
    for _, kept in _blocks(artifacts):
        for example in examples:
            for apart, look in _alike(example, kept, bits, colour):
                if look.place < example.place and (example.original is None or apart < example.original[0]):
                    example.original = apart, look


def _gather(artifacts: Mapping[str, Artifact], originals: list[Look], bits: int, colour: float) -> None:
    """Notes for each original the dropped pictures after it that look like it."""
    for near, _ in _blocks(artifacts):
        for original in originals:
            for apart, look in _alike(original, near, bits, colour):
                if look.place > original.place:
                    original.members[look.place] = apart


def _alike(one: Look, block: Block, bits: int, colour: float) -> Iterator[tuple[int, Look]]:
    """Those of ``block`` that look like ``one``, with the bits that they differ in."""
    apart_N = np.bitwise_count(block.phash_N ^ one.phash)
    for row in np.flatnonzero(apart_N <= bits).tolist():
        if thumbnail_distance(block.thumbnail_NDC[row : row + 1], one.thumbnail_DC[None])[0] <= colour:
            yield int(apart_N[row]), block.look(row)
