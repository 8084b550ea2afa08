"""Near duplicates beside the kept image that they resemble."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.io import storage
from dataprep.io.parquet import read_table, write_table
from pipeline.report.duplicate_clusters import collect_clusters
from pipeline.store.run import Run
from tests.helpers.runs import caption


def test_near_duplicates_are_grouped_by_original(run: Run) -> None:
    """A kept row, one that differs from it in two bits and is dropped, and one of another colour."""
    artifacts = run.artifacts()
    select, annotate = artifacts["select"], artifacts["annotate"]
    (_, victim), (_, copy) = ((0, "000000001"), (1, "000010002"))
    for shard in (0, 1):
        path = annotate.shards[shard].files["parquet"]
        table = read_table(path, "annotations")
        keys = table["key"].to_pylist()
        hashes = {victim: 0b1000, copy: 0b1011}
        phash = [hashes.get(key, 2**40 * (7 + row + 99 * shard)) for row, key in enumerate(keys)]
        stored = zip(keys, table["thumbnail"].to_pylist(), strict=True)
        looks = [bytes([9] * 192) if key in hashes else data for key, data in stored]
        names = table.column_names
        table = table.set_column(names.index("phash"), "phash", pa.array(phash, pa.uint64()))
        table = table.set_column(names.index("thumbnail"), "thumbnail", pa.array(looks, pa.binary(192)))
        write_table(table, path, "annotations")
        path = select.shards[shard].files["parquet"]
        table = read_table(path, "selection")
        dropped = pa.array([key == copy for key in keys])
        reason = pc.if_else(dropped, "near_duplicate: looks like an earlier image", table["reason"])
        original = pa.array([victim if key == copy else None for key in keys], pa.string())
        names = table.column_names
        table = table.set_column(1, "keep", pc.and_(table["keep"], pc.invert(dropped))).set_column(2, "reason", reason)
        table = table.set_column(names.index("duplicate_of"), "duplicate_of", original)
        write_table(table, path, "selection")
    storage.write_json(select.path("examples.json"), {"near_duplicate": [{"shard": 1, "key": copy}]})
    (found,) = collect_clusters(artifacts, 4)
    assert (found["original"]["caption"], found["count"]) == (caption(1), 1)
    assert [(item["caption"], item["note"]) for item in found["duplicates"]] == [(caption(7), "2 of 64 bits differ")]
    storage.write_json(select.path("examples.json"), {"near_duplicate": []})
    assert collect_clusters(artifacts, 4) == []
