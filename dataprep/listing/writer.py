"""Writes the listing as Parquet shards of kind "listing"."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from dataprep.io.parquet import write_table
from dataprep.io.redact import blank_rows, hash_url
from dataprep.listing.account import Account
from dataprep.listing.columns import MESSAGE, REASON
from dataprep.listing.config import ListingConfig
from dataprep.listing.parquet_tables import convert_to_text_column, find_conflicting_columns
from dataprep.listing.sources import describe_unusable, list_rows

LEFT_OUT_FILE = "left_out.jsonl"  # one line per name in `Account.named`, without limit
ACCOUNT_FILE = "account.json"  # the first names of each kind


class ListingWriter:
    """Cuts tables into shards of ``rows_per_shard`` rows, and counts what is in them."""

    def __init__(self, config: ListingConfig, out_dir: Path, forgotten: Collection[str]) -> None:
        self.config, self.out_dir, self.forgotten = config, out_dir, forgotten
        self.pending: list[pa.Table] = []
        self.counts: Counter[str] = Counter(rows=0, shards=0, usable=0)
        self.unusable: pa.Table | None = None  # the first row with a reason

    def add(self, table: pa.Table) -> None:
        """Adds rows; writes every shard that is full."""
        reasons = table[REASON] if REASON in table.column_names else pa.nulls(table.num_rows, pa.string())
        usable_N = pc.is_null(reasons)
        usable = pc.sum(usable_N).as_py() or 0
        self.counts["usable"] += usable
        self.counts["without_caption"] += pc.sum(pc.and_(usable_N, pc.equal(table["caption"], ""))).as_py() or 0
        for item in pc.value_counts(reasons).to_pylist():
            if item["values"] is not None:
                self.counts[f"reason_{item['values']}"] += item["counts"]
        if self.unusable is None and usable < table.num_rows:
            self.unusable = table.filter(pc.is_valid(reasons)).slice(0, 1)
        self.pending.append(table)
        while sum(part.num_rows for part in self.pending) >= self.config.rows_per_shard:
            joined = _concatenate_tables(self.pending)
            self._write(joined.slice(0, self.config.rows_per_shard))
            rest = joined.slice(self.config.rows_per_shard)
            self.pending = [rest] if rest.num_rows else []

    def close(self) -> None:
        """Writes the last shard. Raises UserError if there is no row, or none that can have an image."""
        if self.pending:
            self._write(_concatenate_tables(self.pending))
        if self.counts["rows"] == 0:
            raise UserError(f"listing.path {self.config.path}: no rows; give a source with at least one")
        if self.counts["usable"] == 0 and self.unusable is not None:
            raise describe_unusable(self.config, self.unusable, self.counts["rows"])

    def _write(self, table: pa.Table) -> None:
        if REASON in table.column_names and table[REASON].null_count == table.num_rows:
            table = table.drop_columns([REASON, MESSAGE])
        if self.forgotten:
            gone_N = np.array([hash_url(url) in self.forgotten for url in table["url"].to_pylist()])
            table = blank_rows(table, "listing", gone_N) if gone_N.any() else table
            self.counts["forgotten"] += int(gone_N.sum())
        write_table(table.combine_chunks(), self.out_dir / shard_name(self.counts["shards"], "parquet"), "listing")
        self.counts["shards"] += 1
        self.counts["rows"] += table.num_rows


def write_listing(
    config: ListingConfig, seed: int, out_dir: str | Path, forgotten: Collection[str] = frozenset()
) -> dict[str, int]:
    """Writes all rows to ``out_dir``/00000.parquet and so on; UserError if there are none.

    Every shard but the last has rows_per_shard rows, so appending to a source changes the last shard only. Rows whose
    URL hash (`redact.hash_url`) is in ``forgotten`` are blanked, not removed, so that all other rows keep their keys.
    What is left out of the source is written to `LEFT_OUT_FILE` and `ACCOUNT_FILE`, if anything is.

    Returns:
        Counters: records (read from the source), rows, shards, usable (rows without a reason), reason_<reason>, and if
        they occur without_caption, beyond_limit (records read above ``limit``), forgotten, and the kinds of
        `dataprep.listing.account`. records = rows + beyond_limit, and rows = usable + all reason_<reason>.
    """
    writer = ListingWriter(config, Path(out_dir), forgotten)
    log_path = Path(out_dir) / LEFT_OUT_FILE
    with open(log_path, "w", encoding="utf-8") as log:
        account = Account(log=lambda kind, name: print(json.dumps([kind, name], ensure_ascii=False), file=log))
        for table in list_rows(config, seed, account=account):
            writer.add(table)
        writer.close()
    counts = writer.counts
    beyond = account.records - counts["rows"]
    assert beyond >= 0 and (beyond == 0 or config.limit is not None), (account.records, counts["rows"])
    assert counts["rows"] == counts["usable"] + sum(n for name, n in counts.items() if name.startswith("reason_"))
    if account.named:
        account_json = {"named": account.named, "counts": dict(account.counts)}
        (Path(out_dir) / ACCOUNT_FILE).write_text(json.dumps(account_json, ensure_ascii=False), encoding="utf-8")
    else:
        log_path.unlink()
    found = {"records": account.records, **counts, "beyond_limit": beyond, **account.counts}
    return {name: n for name, n in found.items() if n or name in ("records", "rows", "shards", "usable")}


def _concatenate_tables(tables: list[pa.Table]) -> pa.Table:
    """Joins tables whose columns may differ: a column that a table lacks is null there, and one whose types have no
    common one is text."""
    conflicts = find_conflicting_columns([table.schema for table in tables])
    alike = []
    for table in tables:
        for name in conflicts.intersection(table.column_names):
            place = table.column_names.index(name)
            table = table.set_column(place, name, convert_to_text_column(table[name]))
        alike.append(table)
    return pa.concat_tables(alike, promote_options="permissive")
