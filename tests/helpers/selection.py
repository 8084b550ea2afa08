"""Rows of annotations, scores and lists, and selections over them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataprep.filters.base import SetFilter
from dataprep.filters.column_store import ColumnStore
from dataprep.filters.config import SelectConfig
from dataprep.filters.select import PairShard, Selection, select_pairs
from dataprep.io.parquet import write_table
from dataprep.io.schemas import ANNOTATIONS

Rows = list[dict[str, Any]]
OFF = SelectConfig(min_side=0, near_duplicate_bits=None, exact_duplicates=False)


def row(index: int, **changes: Any) -> dict[str, Any]:
    """Returns a row of annotations that passes every default filter."""
    digest = f"{(index * 2654435761) % 2**32:08x}" + "0" * 56
    good = {"key": f"{index:09d}", "ok": True, "width": 100, "height": 80, "aspect": 1.25, "bytes": 1000}
    good |= {"sha256": digest, "phash": index * 0x9E3779B97F4A7C15 % 2**64, "thumbnail": bytes([index % 256] * 192)}
    good |= {"caption": "a red circle", "caption_chars": 12, "caption_words": 3, "alpha_share": 1.0}
    return good | {"language": "en", "language_confidence": 0.9} | changes


def write_shards(
    folder: Path,
    tables: Sequence[pa.Table],
    scores: Sequence[pa.Table] | None = None,
    downloads: Sequence[pa.Table] | None = None,
) -> list[PairShard]:
    """Writes the tables as files, one shard each."""
    shards = []
    for index in range(len(tables)):
        paths: list[str | None] = []
        for kind, given in (("annotations", tables), ("scores", scores), ("download", downloads)):
            path = folder / f"{kind}-{index}.parquet"
            if given is not None:
                write_table(given[index], path, kind)
            paths.append(str(path) if given is not None else None)
        assert paths[0] is not None
        shards.append(PairShard(paths[0], paths[1], paths[2]))
    return shards


def choose(
    shards: Sequence[Rows],
    config: SelectConfig,
    scores: Sequence[dict[str, Any]] | None = None,
    downloads: Sequence[dict[str, Any]] | None = None,
    **options: Any,
) -> tuple[list[pa.Table], Selection]:
    """Selects over shards of rows; ``scores`` and ``downloads`` are further columns, one dict per shard."""
    tables = [pa.Table.from_pylist(rows, schema=ANNOTATIONS) for rows in shards]

    def beside(given: Sequence[dict[str, Any]] | None) -> list[pa.Table] | None:
        if given is None:
            return None
        return [pa.table({"key": table["key"]} | columns) for table, columns in zip(tables, given, strict=True)]

    written: list[pa.Table] = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_shards(Path(folder), tables, beside(scores), beside(downloads))

        def write(place: int, table: pa.Table) -> None:
            assert place == len(written)
            written.append(table)

        selection = select_pairs(files, config, write, **options)
    return written, selection


def reasons(rows: Rows, config: SelectConfig, *beside: Any, **options: Any) -> list[str | None]:
    """Returns the filter that dropped each row of one shard; ``beside``: its scores and its columns of the list."""
    written, _ = choose([rows], config, *([columns] if columns is not None else None for columns in beside), **options)
    return [reason and reason.split(":")[0] for reason in written[0]["reason"].to_pylist()]


def stays(rule: SetFilter, left_M: np.ndarray | None = None, **columns: np.ndarray) -> np.ndarray:
    """Returns the rows that a set filter keeps, bool (M,); ``columns`` are its stored columns."""
    left_M = np.ones(len(next(iter(columns.values()))), bool) if left_M is None else left_M.copy()
    with tempfile.TemporaryDirectory() as folder, ColumnStore(folder) as store:
        for name, values in columns.items():
            for start in range(0, len(values), 700):  # as shards would
                store.append(name, values[start : start + 700])
        rule.drop(store, left_M)
    return left_M


def float32(values: Sequence[float | None]) -> pa.Array:
    """Returns a float32 column."""
    return pa.array(values, pa.float32())


LISTED = {
    "listed_nsfw": pa.array(["UNLIKELY", "nsfw ", None]),
    "listed_unsafe": [0.1, 0.5, None],
    "listed_watermark": [0.1, 0.8, None],
    "listed_aesthetic": [7.1, 7.0, None],
    "listed_language": ["en", "fr", None],
    "listed_similarity_b32": [0.28, 0.27, None],
    "listed_similarity_l14": float32([0.28, 0.27, None]),
}
