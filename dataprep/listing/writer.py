"""Writes the listing as Parquet shards of kind "listing", each of rows of one source."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from dataprep.io.parquet import write_table
from dataprep.io.redact import blank_rows, hash_url
from dataprep.listing.account import Account
from dataprep.listing.columns import FILE_HASH, MESSAGE, REASON
from dataprep.listing.config import ONLY_SOURCE, ListingConfig
from dataprep.listing.parquet_tables import convert_to_text_column, find_conflicting_columns
from dataprep.listing.sources import check_source, describe_unusable, read_sources

LEFT_OUT_FILE = "left_out.jsonl"  # one line per name in `Account.named`, without limit
ACCOUNT_FILE = "account.json"  # the first names of each kind
SOURCES_FILE = "sources.json"  # name of a source -> `SourceCounts`, where there are several


@dataclass
class SourceCounts:
    """What became of a source."""

    first_shard: int
    shards: int = 0
    rows: int = 0
    usable: int = 0


class ListingWriter:
    """Cuts the tables of each source into shards of ``rows_per_shard`` rows, and counts what is in them.

    Every shard has the ``columns``, null where its source does not have them.
    """

    def __init__(
        self,
        config: ListingConfig,
        out_dir: Path,
        forgotten: Collection[str],
        columns: Mapping[str, pa.DataType] | None = None,
        on_shard: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self.on_shard = on_shard
        self.config, self.out_dir, self.forgotten, self.columns = config, out_dir, forgotten, dict(columns or {})
        self.pending: list[pa.Table] = []
        self.sources: dict[str, SourceCounts] = {}
        self.counts: Counter[str] = Counter(rows=0, shards=0, usable=0)
        self.unusable: pa.Table | None = None  # the first row with a reason

    def add(self, table: pa.Table, source: str = ONLY_SOURCE) -> None:
        """Adds rows of a source; writes every shard that is full, and the last one of the source before."""
        if source not in self.sources:
            self._write_rest()
            self.sources[source] = self.own = SourceCounts(self.counts["shards"])
        reasons = table[REASON] if REASON in table.column_names else pa.nulls(table.num_rows, pa.string())
        usable_N = pc.is_null(reasons)
        usable = pc.sum(usable_N).as_py() or 0
        self.counts["usable"] += usable
        self.own.usable += usable
        self.own.rows += table.num_rows
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

    def _write_rest(self) -> None:
        if self.pending:
            self._write(_concatenate_tables(self.pending))
            self.pending = []

    def close(self) -> None:
        """Writes the last shard. Raises UserError if there is no row, or none that can have an image."""
        self._write_rest()
        where = f"listing.path {self.config.path}" if self.config.path else "listing.sources"
        if self.counts["rows"] == 0:
            raise UserError(f"{where}: no rows; give a source with at least one")
        if self.counts["usable"] == 0 and self.unusable is not None:
            raise describe_unusable(where, self.unusable, self.counts["rows"])

    def _write(self, table: pa.Table) -> None:
        if REASON in table.column_names and table[REASON].null_count == table.num_rows:
            table = table.drop_columns([REASON, MESSAGE])
        for name, kind in self.columns.items():
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, kind))
        if self.forgotten:
            gone_N = np.array([hash_url(url) in self.forgotten for url in table["url"].to_pylist()])
            table = blank_rows(table, "listing", gone_N) if gone_N.any() else table
            self.counts["forgotten"] += int(gone_N.sum())
        path = self.out_dir / shard_name(self.counts["shards"], "parquet")
        write_table(table.combine_chunks(), path, "listing")
        self.own.shards += 1
        self.counts["shards"] += 1
        self.counts["rows"] += table.num_rows
        self.on_shard(path)


def write_listing(
    config: ListingConfig,
    seed: int,
    out_dir: str | Path,
    forgotten: Collection[str] = frozenset(),
    on_shard: Callable[[Path], None] = lambda path: None,
) -> dict[str, int]:
    """Writes all rows to ``out_dir``/00000.parquet and so on; UserError if there are none.

    Every shard but the last of each source has rows_per_shard rows, so appending to the last source changes the last
    shard only. Of several sources, `SOURCES_FILE` says which shards are whose, and all shards have the columns that any
    source has in its first rows. Rows whose
    URL hash (`redact.hash_url`) is in ``forgotten`` are blanked, not removed, so that all other rows keep their keys.
    ``on_shard`` is called with the path of each shard once it is written, and may move it away. What is left out of the
    source is written to `LEFT_OUT_FILE` and `ACCOUNT_FILE`, if anything is.

    Returns:
        Counters: records (read from the source), rows, shards, usable (rows without a reason), reason_<reason>, and if
        they occur without_caption, beyond_limit (records read above ``limit``), forgotten, and the kinds of
        `dataprep.listing.account`. records = rows + beyond_limit, and rows = usable + all reason_<reason>.
    """
    columns = {name: kind for name, kind in check_source(config).items() if name != FILE_HASH} if config.sources else {}
    writer = ListingWriter(config, Path(out_dir), forgotten, columns, on_shard)
    log_path = Path(out_dir) / LEFT_OUT_FILE
    with open(log_path, "w", encoding="utf-8") as log:
        account = Account(log=lambda kind, name: print(json.dumps([kind, name], ensure_ascii=False), file=log))
        for rows in read_sources(config, seed, account=account):
            writer.add(rows.table, rows.source)
        writer.close()
    counts = writer.counts
    beyond = account.records - counts["rows"]
    limited = any(source.limit is not None for source in config.list_sources().values())
    assert beyond >= 0 and (beyond == 0 or limited), (account.records, counts["rows"])
    assert counts["rows"] == counts["usable"] + sum(n for name, n in counts.items() if name.startswith("reason_"))
    if config.sources:
        described = {name: asdict(own) for name, own in writer.sources.items()}
        (Path(out_dir) / SOURCES_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
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
