"""The name of a row's source, where a run has several."""

from __future__ import annotations

from pathlib import Path

from dataprep.io.parquet import read_schema, read_table

SOURCE_COLUMN = "listed_source"  # column of listing, download and pack; a run of one source has none


def read_source(download_path: str | Path) -> str:
    """Returns the source of a download shard; "" in a run of one, and where every row was forgotten."""
    if SOURCE_COLUMN not in read_schema(download_path, "download").names:
        return ""
    names = read_table(download_path, "download", [SOURCE_COLUMN])[SOURCE_COLUMN].unique().drop_null().to_pylist()
    return str(names[0]) if names else ""
