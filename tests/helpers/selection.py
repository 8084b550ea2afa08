"""Rows of annotations, scores and lists, and selections over them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dataprep.filters import pair_shards
from dataprep.filters.base import SetFilter
from dataprep.filters.config import SelectConfig
from dataprep.filters.exchange import NONE, VERDICT
from dataprep.filters.left_rows import LeftRows, write_state
from dataprep.filters.pair_shards import SHARD_ROWS, Groups, PairShard, group_shards, open_shards
from dataprep.filters.select import Selection, select_pairs
from dataprep.filters.steps import LocalRunner, OpenTask, StepTask
from dataprep.io.keys import sample_key
from dataprep.io.parquet import read_table, write_table
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
        shards.append(PairShard(index, tables[index].num_rows, paths[0], paths[1], paths[2]))
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

    with tempfile.TemporaryDirectory() as folder:
        files = write_shards(Path(folder), tables, beside(scores), beside(downloads))
        selection = select_pairs(files, config, LocalRunner(Path(folder)), **options)
        written = [read_table(path, "selection") for path in selection.tables.values()]
    return written, selection


def reasons(rows: Rows, config: SelectConfig, *beside: Any, **options: Any) -> list[str | None]:
    """Returns the filter that dropped each row of one shard; ``beside``: its scores and its columns of the list."""
    written, _ = choose([rows], config, *([columns] if columns is not None else None for columns in beside), **options)
    return [name_filter(reason) for reason in written[0]["reason"].to_pylist()]


def name_filter(reason: str | None) -> str | None:
    """Returns the filter of a reason in a selection table."""
    return reason and reason.split(":")[0]


class SetState:
    """Worker: begins with the rows left that ``before`` says, a bool per row."""

    def __init__(self, before: list[bool], shard_rows: int) -> None:
        self.before, self.shard_rows = before, shard_rows

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the state of a group."""
        shards = list(open_shards(task.files))
        start = shards[0].id * self.shard_rows
        codes = (
            (place, (~np.array(self.before[start + place * self.shard_rows :][: shard.rows])).astype(np.uint8))
            for place, shard in enumerate(shards)
        )
        write_state(task, len(shards), ((place, code_N, np.zeros(0, VERDICT)) for place, code_N in codes))
        return {}


def decide(
    rule: SetFilter,
    columns: dict[str, Any],
    before_M: np.ndarray | None = None,
    scores: dict[str, Any] | None = None,
    shard_rows: int = 97,
    group_rows: int = 300,
) -> tuple[np.ndarray, np.ndarray]:
    """Lets a set filter decide on rows with these columns of annotations and scores, in several shards and groups.

    Returns which rows are left, bool (N,), and the row that each dropped one repeats, or `NONE`; int64 (N,).
    """
    count = len(next(iter((columns or scores or {}).values())))
    before_M = np.ones(count, bool) if before_M is None else before_M
    table = pa.table(
        [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in ANNOTATIONS],
        schema=ANNOTATIONS,
    ).set_column(0, "key", pa.array([f"{row:09d}" for row in range(count)]))
    beside = pa.table({"key": table["key"]} | scores) if scores is not None else None
    starts = range(0, count, shard_rows)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_shards, "GROUP_ROWS", group_rows)
        shards = write_shards(
            Path(folder),
            [table.slice(start, shard_rows) for start in starts],
            [beside.slice(start, shard_rows) for start in starts] if beside is not None else None,
        )
        grouped = group_shards(shards)
        groups = Groups(tuple(some[0].id for some in grouped), tuple(some[-1].id + 1 for some in grouped))
        runner = LocalRunner(Path(folder))
        tasks = [
            StepTask(number, {name: path for shard in some for name, path in shard.list_files(()).items()})
            for number, some in enumerate(grouped)
        ]
        state = runner.run("state", SetState, {"before": before_M.tolist(), "shard_rows": shard_rows}, tasks)
        left = LeftRows(runner, grouped, groups, state, int(before_M.sum()), "rule")
        verdicts = rule.decide(left)
        parts = verdicts.parts
        numbers = [0] if verdicts.own else range(len(grouped))
        found = np.concatenate([np.zeros(0, VERDICT), *(parts.read(number, VERDICT) for number in numbers)])
    assert len(np.unique(found["position"])) == len(found) == verdicts.dropped
    to_row = lambda position_K: position_K // SHARD_ROWS * shard_rows + position_K % SHARD_ROWS  # noqa: E731
    left_M, original_N = before_M.copy(), np.full(count, NONE)
    left_M[to_row(found["position"])] = False
    original_N[to_row(found["position"])] = np.where(found["original"] == NONE, NONE, to_row(found["original"]))
    return left_M, original_N


def make_repetitive_rows(count: int) -> tuple[list[pa.Table], list[pa.Table], list[pa.Table]]:
    """Annotations, scores and lists of shards of 90 rows, with repetitions of every kind."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        made = row(index, key=sample_key(index // 90, index % 90), caption=f"a red circle {rng.integers(0, count)}")
        made["phash"] = int(rng.integers(0, 2**63))
        if rows and rng.random() < 0.5:
            other = rows[rng.integers(0, len(rows))]
            kind = rng.integers(0, 4)
            if kind == 0:
                made["sha256"] = other["sha256"]
            elif kind == 1:
                made |= {"phash": other["phash"] ^ (1 << int(rng.integers(0, 63))), "thumbnail": other["thumbnail"]}
            elif kind == 2:
                made["caption"] = other["caption"].upper()
            else:
                made |= {"aspect": 9.0, "phash": other["phash"]}
        rows.append(made)
    similar = pa.array(np.round(rng.random(count), 2), pa.float32(), mask=rng.random(count) < 0.02)
    urls = pa.array([f"http://a.test/{number}" for number in rng.integers(0, 3, count)])
    for index in range(0, count, 7):
        rows[index]["caption"] = "a red circle again"
    tables = [pa.Table.from_pylist(rows[start : start + 90], schema=ANNOTATIONS) for start in range(0, count, 90)]
    keys = [table["key"] for table in tables]
    scores = [pa.table({"key": key, "clip_similarity": similar[90 * at : 90 * at + 90]}) for at, key in enumerate(keys)]
    lists = [pa.table({"key": key, "url": urls[90 * at : 90 * at + 90]}) for at, key in enumerate(keys)]
    return tables, scores, lists


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
