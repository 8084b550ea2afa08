"""Decides which pairs to train on: selection tables, funnel, examples and the train/validation split.

Reads columns only, never an image, so that a changed threshold costs this stage and its successors. Shards are read one
after the other; set filters keep what they need of each row on disk, so memory grows by one or two bytes per row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dataprep.filters.base import RowFilter, SetFilter
from dataprep.filters.column_store import ColumnStore
from dataprep.filters.config import SelectConfig, make_filters, make_set_filters
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_schema, read_table
from dataprep.io.schemas import ANNOTATIONS as ANNOTATIONS

TRAIN, VALIDATION = "train", "validation"
EXAMPLES = 8  # dropped rows listed per filter
SCHEMA = pa.schema({"key": pa.string(), "keep": pa.bool_(), "reason": pa.string(), "split": pa.string()})


@dataclass(frozen=True)
class PairShard:
    """The row-aligned files of one shard; ``downloads`` has the columns that came with the list."""

    annotations: str
    scores: str | None = None
    downloads: str | None = None

    def list_columns(self) -> set[str]:
        """Returns all columns of the files."""
        names = set(ANNOTATIONS.names)
        for path, kind in ((self.downloads, "download"), (self.scores, "scores")):
            if path is not None:
                names |= set(read_schema(path, kind).names)
        return names

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """Reads ``columns`` from the first of annotations, scores and list that has each; a missing one is null.

        Raises ValueError if the files do not have the same rows.
        """
        own = [name for name in columns if name in ANNOTATIONS.names]
        rows = read_table(self.annotations, "annotations", list(dict.fromkeys(["key", *own])))
        missing = [name for name in columns if name not in rows.column_names]
        for path, kind in ((self.scores, "scores"), (self.downloads, "download")):
            if not missing or path is None:
                continue
            present = [name for name in missing if name in read_schema(path, kind).names]
            if present:
                table = read_table(path, kind, ["key", *present])
                if not table["key"].combine_chunks().equals(rows["key"].combine_chunks()):
                    raise ValueError(f"{path}: not the rows of {self.annotations}; make the {kind} of this shard again")
                for name in present:
                    rows = rows.append_column(table.schema.field(name), table[name])
                missing = [name for name in missing if name not in present]
        for name in missing:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.float64()))
        return rows.select(columns)


@dataclass
class Selection:
    """Result of a selection.

    ``funnel`` has one dict per filter, in order: filter, in, dropped, kept, reason. ``examples`` maps each filter to
    the first `EXAMPLES` rows that it dropped: shard (index) and key.
    """

    rows: int = 0
    kept: int = 0
    funnel: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def select_pairs(
    shards: Sequence[PairShard],
    config: SelectConfig,
    write: Callable[[int, pa.Table], None],
    min_similarity: float | None = None,
) -> Selection:
    """Selects over all shards together and calls ``write`` with each shard's index and selection table, in order.

    Columns of a selection table: key, keep, reason (null if kept, else "filter: why"), split ("train" or "validation",
    null if dropped).

    Raises:
        UserError: a filter's column is missing, or no row is left; nothing has been written then.
    """
    available = shards[0].list_columns()
    filters = make_filters(config, available, min_similarity)
    set_filters = make_set_filters(config, available)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as folder, ColumnStore(folder) as store:
        verdicts = _Verdicts()
        for shard in shards:
            verdicts.add_shard(shard, filters, set_filters, store)
        for name, rule in set_filters.items():
            verdicts.apply_set_filter(name, rule, store)
    selection = Selection(verdicts.rows, verdicts.left, verdicts.build_funnel())
    if verdicts.left == 0:
        worst = max(selection.funnel, key=lambda step: step["dropped"])
        raise UserError(
            f"select: nothing is left of {verdicts.rows} rows; {worst['filter']} dropped {worst['dropped']} "
            f"({worst['reason']}): loosen it or check the source"
        )
    names = [step["filter"] for step in selection.funnel]
    selection.examples = {name: [] for name in names}
    for index, (shard, code_N) in enumerate(zip(shards, verdicts.split_by_shard(), strict=True)):
        rows = shard.read_columns(["key", "sha256"])
        for code, name in enumerate(names, 1):
            examples = selection.examples[name]
            for row in np.flatnonzero(code_N == code)[: EXAMPLES - len(examples)].tolist():
                examples.append({"shard": index, "key": rows["key"][row].as_py()})
        write(index, _build_table(rows, code_N, selection.funnel, config.validation_fraction))
    return selection


class _Verdicts:
    """For each row the number of the filter that dropped it, from 1; 0 while it is kept. One byte per row."""

    def __init__(self) -> None:
        self.codes: list[np.ndarray] = []  # one per shard
        self.names: list[tuple[str, str]] = []  # (filter, reason) in order
        self.dropped: list[int] = []
        self.rows = 0
        self.left_M: np.ndarray | None = None  # over the rows that the row filters kept

    @property
    def left(self) -> int:
        return self.rows - sum(self.dropped)

    def add_shard(
        self,
        shard: PairShard,
        filters: Mapping[str, RowFilter],
        set_filters: Mapping[str, SetFilter],
        store: ColumnStore,
    ) -> None:
        """Applies the row filters to a shard and stores what the set filters need of the rows that are kept."""
        columns = [name for rule in filters.values() for name in rule.columns]
        columns += [name for rule in set_filters.values() for name in rule.columns]
        rows = shard.read_columns(list(dict.fromkeys(columns)))
        code_N = np.zeros(rows.num_rows, np.uint8)
        left_M = np.arange(rows.num_rows)
        for code, (name, rule) in enumerate(filters.items(), 1):
            if len(self.names) < code:
                self.names.append((name, ""))
                self.dropped.append(0)
            if len(left_M):
                part = rows.select(rule.columns)
                keep_M, reason = rule.judge(part if len(left_M) == len(code_N) else part.take(pa.array(left_M)))
                self.names[code - 1] = (name, reason)
                code_N[left_M[~keep_M]] = code
                self.dropped[code - 1] += int((~keep_M).sum())
                left_M = left_M[keep_M]
        self.codes.append(code_N)
        self.rows += rows.num_rows
        stay = rows.take(pa.array(left_M))
        for set_rule in set_filters.values():
            for column, values in set_rule.extract(stay.select(set_rule.columns)).items():
                store.append(column, values)

    def apply_set_filter(self, name: str, rule: SetFilter, store: ColumnStore) -> None:
        """Applies a set filter to the rows that are still kept."""
        if self.left_M is None:
            self.left_M = np.ones(self.left, bool)
            self.code_M = np.zeros(self.left, np.uint8)
        before_M = self.left_M.copy()
        if before_M.any():
            rule.drop(store, self.left_M)
        self.names.append((name, rule.reason))
        gone_M = before_M & ~self.left_M
        self.code_M[gone_M] = len(self.names)
        self.dropped.append(int(gone_M.sum()))

    def build_funnel(self) -> list[dict[str, Any]]:
        """Returns one dict per filter."""
        steps, left = [], self.rows
        for (name, reason), dropped in zip(self.names, self.dropped, strict=True):
            steps.append({"filter": name, "in": left, "dropped": dropped, "kept": left - dropped, "reason": reason})
            left -= dropped
        return steps

    def split_by_shard(self) -> list[np.ndarray]:
        """Returns the final numbers, one uint8 array per shard."""
        if self.left_M is not None:
            start = 0
            for code_N in self.codes:
                inside = np.flatnonzero(code_N == 0)
                code_N[inside] = self.code_M[start : start + len(inside)]
                start += len(inside)
            self.left_M = None
        return self.codes


def _build_table(
    rows: pa.Table, code_N: np.ndarray, funnel: list[dict[str, Any]], validation_fraction: float
) -> pa.Table:
    """Builds a selection table; the split follows the hash of the stored image, so it is the same in every run."""
    reasons = np.array([None, *(f"{step['filter']}: {step['reason']}" for step in funnel)], dtype=object)
    splits = [
        None if code else VALIDATION if int(digest[:8], 16) / 2**32 < validation_fraction else TRAIN
        for code, digest in zip(code_N.tolist(), rows["sha256"].to_pylist(), strict=True)
    ]
    columns = {"key": rows["key"].combine_chunks(), "keep": pa.array(code_N == 0)}
    return pa.table(columns | {"reason": pa.array(reasons[code_N]), "split": pa.array(splits)}, schema=SCHEMA)
