"""Writes the listing as Parquet shards of kind "listing"."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from dataprep.io.parquet import write_table
from dataprep.io.redact import blank_rows, hash_url
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import list_rows


def write_listing(
    config: ListingConfig, seed: int, out_dir: str | Path, forgotten: Collection[str] = frozenset()
) -> dict[str, int]:
    """Writes all rows to ``out_dir``/00000.parquet and so on; UserError if there are none.

    Every shard but the last has rows_per_shard rows, so appending to a source changes the last shard only. Rows whose
    URL hash (`redact.hash_url`) is in ``forgotten`` are blanked, not removed, so that all other rows keep their keys.

    Returns:
        Counters: rows, shards, and forgotten if any are given.
    """
    pending: list[pa.Table] = []
    rows_total = shards = blanked = 0

    def write(table: pa.Table) -> None:
        nonlocal shards, rows_total, blanked
        if forgotten:
            gone_N = np.array([hash_url(url) in forgotten for url in table["url"].to_pylist()])
            table = blank_rows(table, "listing", gone_N) if gone_N.any() else table
            blanked += int(gone_N.sum())
        write_table(table.combine_chunks(), Path(out_dir) / shard_name(shards, "parquet"), "listing")
        shards, rows_total = shards + 1, rows_total + table.num_rows

    for table in list_rows(config, seed):
        pending.append(table)
        while sum(part.num_rows for part in pending) >= config.rows_per_shard:
            joined = _concatenate_tables(pending)
            write(joined.slice(0, config.rows_per_shard))
            rest = joined.slice(config.rows_per_shard)
            pending = [rest] if rest.num_rows else []
    if pending:
        write(_concatenate_tables(pending))
    if rows_total == 0:
        raise UserError(f"listing.path {config.path}: no rows; give a source with at least one")
    return {"rows": rows_total, "shards": shards} | ({"forgotten": blanked} if forgotten else {})


def _concatenate_tables(tables: list[pa.Table]) -> pa.Table:
    """Joins tables whose columns may differ: a column that a table lacks is null there."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"listing.path: files disagree on a column's type ({error}); make them alike") from error
