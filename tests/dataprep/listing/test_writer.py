"""Listing shards."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from dataprep.io.keys import shard_name
from dataprep.io.parquet import read_table
from dataprep.listing.writer import write_listing
from tests.helpers.lists import ROWS, table_config, write_csv


def test_shards_and_limit(tmp_path: Path) -> None:
    config = table_config(write_csv(tmp_path / "list.csv"), rows_per_shard=2, limit=3)
    (tmp_path / "out").mkdir()
    counters = {"records": 5, "rows": 3, "shards": 2, "usable": 3, "beyond_limit": 2}
    assert write_listing(config, 0, tmp_path / "out") == counters
    shards = [read_table(tmp_path / "out" / shard_name(index, "parquet"), "listing") for index in range(2)]
    assert [shard.num_rows for shard in shards] == [2, 1]
    assert pa.concat_tables(shards)["url"].to_pylist() == [url for url, _ in ROWS[:3]]


def test_appending_rows_changes_the_last_shard_only(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "list.csv")
    for name, rows in (("before", ROWS), ("after", [*ROWS, ("http://a.test/new", "new")])):
        write_csv(path, rows=rows)
        (tmp_path / name).mkdir()
        write_listing(table_config(path, rows_per_shard=2), 0, tmp_path / name)
    for shard, same in (("00000", True), ("00001", True), ("00002", False)):
        files = [(tmp_path / name / f"{shard}.parquet").read_bytes() for name in ("before", "after")]
        assert (files[0] == files[1]) is same


def test_files_with_other_columns_are_joined_with_nulls(tmp_path: Path) -> None:
    write_csv(tmp_path / "1.csv", ("url", "caption"), ROWS[:1])
    write_csv(tmp_path / "2.csv", ("url", "text", "more"), [("http://a.test/x", "x", "m")])
    (tmp_path / "out").mkdir()
    write_listing(table_config(tmp_path), 0, tmp_path / "out")
    assert read_table(tmp_path / "out" / "00000.parquet", "listing")["more"].to_pylist() == [None, "m"]


def test_each_shard_is_handed_over_once_it_is_written(tmp_path: Path) -> None:
    """The stage publishes it at once: the rest of the listing does not need the file any more."""
    config = table_config(write_csv(tmp_path / "list.csv"), rows_per_shard=2)
    found: dict[str, int] = {}

    def take(path: Path) -> None:
        found[path.name] = read_table(path, "listing").num_rows
        path.unlink()

    (tmp_path / "out").mkdir()
    counters = write_listing(config, 0, tmp_path / "out", on_shard=take)
    assert found == {"00000.parquet": 2, "00001.parquet": 2, "00002.parquet": 1}
    assert (counters["rows"], counters["shards"], list((tmp_path / "out").iterdir())) == (5, 3, [])
