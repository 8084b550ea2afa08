"""Columns of a source in the listing's form."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io.parquet import ROOT_KEY
from dataprep.listing.sources import list_rows
from tests.helpers.lists import table_config


def test_parquet_keeps_types_and_renames_reserved_columns(tmp_path: Path) -> None:
    columns = {"url": ["http://a.test/1"], "text": ["one"], "width": [512], "similarity": [0.31], "key": ["k"]}
    source = pa.table(columns).replace_schema_metadata({ROOT_KEY: b"/etc"})
    pq.write_table(source, tmp_path / "part.parquet")
    rows = next(list_rows(table_config(tmp_path / "*.parquet"), 0))
    assert rows.column_names == ["url", "caption", "source_width", "similarity", "source_key"]
    assert rows["source_width"].to_pylist() == [512] and rows["similarity"].type == pa.float64()
    assert ROOT_KEY not in (rows.schema.metadata or {})  # a table cannot name a local folder


def test_renamed_columns_do_not_collide(tmp_path: Path) -> None:
    columns = {"url": ["http://a.test/1"], "text": ["one"], "status": ["mine"], "source_status": ["older"]}
    pq.write_table(pa.table(columns | {"file_sha256": ["theirs"]}), tmp_path / "part.parquet")
    row = next(list_rows(table_config(tmp_path), 0)).to_pylist()[0]
    assert (row["source_status"], row["source_source_status"]) == ("older", "mine")
    assert row["source_file_sha256"] == "theirs"
