"""The index of shards: what it says of them, and what it spares the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io.errors import UserError
from dataprep.io.pack_format import BUCKET_COLUMN, ORIGINAL_SIDE
from dataprep.io.parquet import write_table
from tests.helpers.counted_store import READ, REQUESTS, reset
from tests.helpers.packs import FEATURE_WIDTH, write_embeddings, write_pack
from train.loader.config import LoaderConfig
from train.loader.loader import TRAIN, VALIDATION, Loader
from train.loader.reader import CorruptDataError, Reader
from train.loader.shard_index import ShardIndex, index_shards, read_source

COLUMN = ("pixels_16",)
WIDE = 64  # least side of the originals in these tests


def write_shards(folder: Path, count: int, statistics: bool, mixed: bool) -> tuple[list[str], list[str]]:
    """Writes shards of 40 rows in groups of 8, with originals of 50 to 79 pixels; an empty one comes second.

    ``mixed``: splits within a row group and an unknown size, which no pack has; else the last group is held out.
    """
    paths: tuple[list[str], list[str]] = ([], [])
    for number in range(count):
        rows = 0 if number == 1 else 40
        start = number * 40
        table = pq.read_table(write_pack(folder / "raw", start, start + rows, sizes=(16,), rows=8))
        sides = [None if mixed and index == 20 else 50 + (index // 8 * 7 + index % 5) % 30 for index in range(rows)]
        table = table.append_column(ORIGINAL_SIDE, pa.array(sides, pa.int32()))
        groups, order = [8] * 5, range(40)
        if not mixed:
            order = sorted(range(40), key=lambda index: index % 8 == 7)  # type: ignore[assignment]
            groups = [8, 8, 8, 8, 3, 5]
        if rows:
            table = table.take(list(order))
        schema = table.schema
        options: dict[str, Any] = {"compression": "none", "write_page_checksum": True}
        pack, embed = folder / f"p{number:03d}", folder / f"e{number:03d}"
        write_table(table, pack, "pack", groups[: len(groups) if rows else 0], write_statistics=statistics, **options)
        values = pq.read_table(write_embeddings(folder / "raw", start, start + rows))
        values = values.take(list(order)) if rows else values
        write_table(values, embed, "embeddings", groups if rows else [], write_statistics=statistics, **options)
        assert schema.names[-1] == ORIGINAL_SIDE
        paths[0].append(str(pack))
        paths[1].append(str(embed))
    return paths


def count_by_hand(pack: list[str], split: str | None, least: int) -> list[tuple[int, int, int]]:
    """Returns (shard, row group, selected rows) of each row group that has any."""
    found = []
    for shard, path in enumerate(pack):
        with pq.ParquetFile(path) as file:
            for group in range(file.metadata.num_row_groups):
                rows = file.read_row_group(group, columns=["split", ORIGINAL_SIDE]).to_pylist()
                count = sum(split in (None, row["split"]) and (row[ORIGINAL_SIDE] or 0) >= least for row in rows)
                found += [(shard, group, count)] if count else []
    return found


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("least", [0, WIDE])
def test_it_counts_the_selected_rows_of_each_row_group(
    tmp_path: Path, statistics: bool, mixed: bool, least: int
) -> None:
    pack, embed = write_shards(tmp_path, 3, statistics, mixed)
    made = index_shards(pack, embed, COLUMN, least)
    made.write(str(tmp_path / "index"), "these")
    index = ShardIndex.read(str(tmp_path / "index"))
    assert read_source(str(tmp_path / "index")) == "these" and read_source(str(tmp_path / "none")) is None
    assert index.text_dim == 8 and index.pixels == made.pixels and index.min_original == least
    reader = Reader(index, LoaderConfig())
    for split, large in [(TRAIN, least), (VALIDATION, 0), (VALIDATION, least), (None, least), (None, 0)]:
        selected = reader.select(split, large)
        found = list(zip(selected.shard.tolist(), selected.group.tolist(), selected.rows.tolist(), strict=True))
        assert found == count_by_hand(pack, split, large)
        for number in range(len(selected)):
            part = selected.read(number)
            rows = pq.ParquetFile(pack[selected.shard[number]]).read_row_group(selected.group[number]).to_pylist()
            wanted = [split in (None, row["split"]) and (row[ORIGINAL_SIDE] or 0) >= large for row in rows]
            assert part.kept.tolist() == np.flatnonzero(wanted).tolist()
    assert reader.groups_per_window() > 1


def test_an_original_of_unknown_size_is_not_large(tmp_path: Path) -> None:
    """The statistics give the least of the known sizes alone."""
    table = pq.read_table(write_pack(tmp_path / "raw", 0, 7, sizes=(16,)))  # seven rows of the training split
    table = table.append_column(ORIGINAL_SIDE, pa.array([100] * 6 + [None], pa.int32()))
    write_table(table, tmp_path / "p", "pack", [7])
    index = index_shards([str(tmp_path / "p")], None, COLUMN, WIDE)
    assert index.entries("kept").tolist() == [7] and index.entries("large").tolist() == [6]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("count", [3, 9])
def test_requests_at_the_start_do_not_grow_with_shards_and_ranks(tmp_path: Path, count: int, ranks: int) -> None:
    local = write_shards(tmp_path, count, statistics=True, mixed=False)
    pack, embed = ([f"counted://{path}" for path in paths] for paths in local)
    path = f"counted://{tmp_path}/index"
    reset()
    index_shards(pack, embed, COLUMN, WIDE).write(path)
    indexed = sum(REQUESTS.values())
    assert indexed >= 2 * count  # the driver, once: a footer is at least a request
    for _ in range(ranks):
        reset()
        reader = Reader(ShardIndex.read(path), LoaderConfig(cache_mb=0))
        loaders = [
            Loader.from_reader(reader, split, 0, 4, min_original=least)
            for split, least in [(TRAIN, WIDE), (VALIDATION, 0)]
        ]
        assert dict(REQUESTS) == {"get": 1} and set(READ) == {str(tmp_path / "index")}
        loaders[0].batch(0)
        loaders[0].window.pool.shutdown()
        assert REQUESTS["get"] > 1  # only now are shards read


def test_footers_tell_enough_of_a_pack_as_the_pipeline_writes_it(tmp_path: Path) -> None:
    """A request more per row group would be millions; it is needed only where a group mixes large and small."""
    pack, embed = ([f"counted://{path}" for path in paths] for paths in write_shards(tmp_path, 1, True, False))
    reset()
    index_shards(pack, embed, COLUMN)
    plain = REQUESTS["get"]
    reset()
    index_shards(pack, embed, COLUMN, 40)  # all are large enough
    assert REQUESTS["get"] == plain
    reset()
    index_shards(pack, embed, COLUMN, WIDE)
    assert REQUESTS["get"] > plain


def test_shards_that_changed_since_are_refused(tmp_path: Path) -> None:
    pack, embed = write_shards(tmp_path, 1, True, True)
    selected = Reader(index_shards(pack, embed, COLUMN, WIDE), LoaderConfig()).select(TRAIN, WIDE)
    table = pq.read_table(pack[0])
    sides = pa.array([100] * table.num_rows, pa.int32())
    table = table.set_column(table.schema.names.index(ORIGINAL_SIDE), ORIGINAL_SIDE, sides)
    write_table(table, pack[0], "pack", [8] * 5, compression="none")
    with pytest.raises(CorruptDataError, match="7 of 8 rows are selected, where the index of the training has"):
        selected.read(len(selected) - 1)


def test_shards_that_store_pixels_in_two_ways_are_refused(tmp_path: Path) -> None:
    pack = [write_pack(tmp_path / f"p{raw}", 0, 8, raw_up_to=raw) for raw in (16, 64)]
    with pytest.raises(UserError, match=r"p64: stores its pixels or vectors in another way than .*p16; run pack again"):
        index_shards(pack, None, ("pixels_64",))


def test_mixed_buckets_are_refused(tmp_path: Path) -> None:
    table = pq.read_table(write_pack(tmp_path / "raw", 0, 8, sizes=(16,)))
    table = table.append_column(BUCKET_COLUMN, pa.array(["1:1", "4:3"] * 4))
    write_table(table, tmp_path / "p", "pack", [8])
    with pytest.raises(UserError, match=r"p: row group 0 has images of several buckets; run pack again"):
        index_shards([str(tmp_path / "p")], None, COLUMN)


def test_another_file_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a file of kind 'shard_index', found 'pack'"):
        ShardIndex.read(write_pack(tmp_path / "p", 0, 8))


def test_vector_columns_are_found_stored_and_required(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", 0, 9, features=["clip_embedding"])
    index = index_shards([pack], None, (), vectors=["clip_embedding"])
    assert index.vectors == {"clip_embedding": FEATURE_WIDTH}
    index.write(str(tmp_path / "index"))
    assert ShardIndex.read(str(tmp_path / "index")).vectors == index.vectors
    plain = index_shards([pack], None, ())
    assert int(index.entries("bytes").sum()) > int(plain.entries("bytes").sum())
    with pytest.raises(UserError, match=r"no column clip_text_embedding; add it to pack\.features, and"):
        index_shards([pack], None, (), vectors=["clip_text_embedding"])
