"""Which pairs are trained on, decided shard by shard: the selection tables, the funnel, examples and the split.

Everything here reads columns; no image is opened. Changing a threshold costs this stage and what follows it. Shards
are read one after the other, and what the rules over all rows have to know of each row waits on disk, so memory does
not grow with the rows but for a byte or two each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dataprep.annotate import SCHEMA as ANNOTATIONS
from dataprep.filters.base import Filter, SetFilter
from dataprep.rules import SelectConfig, make_filters, make_set_filters
from dataprep.schema import UserError, read_schema, read_table
from dataprep.spill import Spill

TRAIN, VALIDATION = "train", "validation"
EXAMPLES = 8  # keys named a filter
SCHEMA = pa.schema({"key": pa.string(), "keep": pa.bool_(), "reason": pa.string(), "split": pa.string()})


@dataclass(frozen=True)
class PairShard:
    """The row-aligned files of one shard; ``downloads`` is asked for the columns that came with the list."""

    annotations: str
    scores: str | None = None
    downloads: str | None = None

    def columns(self) -> set[str]:
        """Every column that the files have."""
        names = set(ANNOTATIONS.names)
        for path, kind in ((self.downloads, "download"), (self.scores, "scores")):
            if path is not None:
                names |= set(read_schema(path, kind).names)
        return names

    def read(self, columns: Sequence[str]) -> pa.Table:
        """``columns``, those of the annotations before those of the scores and the list; one that is missing is null.

        Raises ValueError where the files are not of the same rows.
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
    """What a selection came to. ``funnel``: filter, in, dropped, kept, reason, a dict a filter in their order.

    ``examples``: a filter -> the first few rows that it dropped, as the shard's number in order and the key.
    """

    rows: int = 0
    kept: int = 0
    funnel: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def select(
    shards: Sequence[PairShard],
    config: SelectConfig,
    write: Callable[[int, pa.Table], None],
    min_similarity: float | None = None,
) -> Selection:
    """Decides over all shards together; ``write`` is called with each shard's place and its selection table, in order.

    A selection row: key, keep, reason (null where kept, else "filter: why"), split ("train" or "validation", null
    where dropped). Raises UserError where a rule's column is missing, and where nothing is left, naming the filter
    that dropped most; then nothing was written.
    """
    available = shards[0].columns()
    filters = make_filters(config, available, min_similarity)
    set_filters = make_set_filters(config, available)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as folder, Spill(folder) as spill:
        verdicts = _Verdicts()
        for shard in shards:
            verdicts.judge(shard, filters, set_filters, spill)
        for rule in set_filters:
            verdicts.judge_together(rule, spill)
    selection = Selection(verdicts.rows, verdicts.left, verdicts.funnel())
    if verdicts.left == 0:
        worst = max(selection.funnel, key=lambda step: step["dropped"])
        raise UserError(
            f"select: nothing is left of {verdicts.rows} rows; {worst['filter']} dropped {worst['dropped']} "
            f"({worst['reason']}): loosen it or check the source"
        )
    names = [step["filter"] for step in selection.funnel]
    selection.examples = {name: [] for name in names}
    for index, (shard, code_N) in enumerate(zip(shards, verdicts.by_shard(), strict=True)):
        rows = shard.read(["key", "sha256"])
        for code, name in enumerate(names, 1):
            examples = selection.examples[name]
            for row in np.flatnonzero(code_N == code)[: EXAMPLES - len(examples)].tolist():
                examples.append({"shard": index, "key": rows["key"][row].as_py()})
        write(index, _selection_table(rows, code_N, selection.funnel, config.validation_fraction))
    return selection


class _Verdicts:
    """For every row the number of the filter that dropped it, from 1; 0 while it is in. A byte a row."""

    def __init__(self) -> None:
        self.codes: list[np.ndarray] = []  # a shard each
        self.names: list[tuple[str, str]] = []  # (filter, reason) in order
        self.dropped: list[int] = []
        self.rows = 0
        self.left_M: np.ndarray | None = None  # among the rows that the filters of single rows left

    @property
    def left(self) -> int:
        return self.rows - sum(self.dropped)

    def judge(self, shard: PairShard, filters: list[Filter], set_filters: list[SetFilter], spill: Spill) -> None:
        """Judges the rows of a shard one by one, and spills of those that stay what the rules over all rows need."""
        columns = [name for rule in filters for name in rule.columns]
        columns += [name for rule in set_filters for name in rule.columns]
        rows = shard.read(list(dict.fromkeys(columns)))
        code_N = np.zeros(rows.num_rows, np.uint8)
        left_M = np.arange(rows.num_rows)
        for code, rule in enumerate(filters, 1):
            if len(self.names) < code:
                self.names.append((rule.name, ""))
                self.dropped.append(0)
            if len(left_M):
                part = rows.select(rule.columns)
                keep_M, reason = rule.verdict(part if len(left_M) == len(code_N) else part.take(pa.array(left_M)))
                self.names[code - 1] = (rule.name, reason)
                code_N[left_M[~keep_M]] = code
                self.dropped[code - 1] += int((~keep_M).sum())
                left_M = left_M[keep_M]
        self.codes.append(code_N)
        self.rows += rows.num_rows
        stay = rows.take(pa.array(left_M))
        for set_rule in set_filters:
            for name, values in set_rule.keys(stay.select(set_rule.columns)).items():
                spill.append(name, values)

    def judge_together(self, rule: SetFilter, spill: Spill) -> None:
        """Lets a rule over all rows drop of those that are still in."""
        if self.left_M is None:
            self.left_M = np.ones(self.left, bool)
            self.code_M = np.zeros(self.left, np.uint8)
        before_M = self.left_M.copy()
        if before_M.any():
            rule.drop(spill, self.left_M)
        self.names.append((rule.name, rule.reason))
        gone_M = before_M & ~self.left_M
        self.code_M[gone_M] = len(self.names)
        self.dropped.append(int(gone_M.sum()))

    def funnel(self) -> list[dict[str, Any]]:
        """A dict a filter."""
        steps, left = [], self.rows
        for (name, reason), dropped in zip(self.names, self.dropped, strict=True):
            steps.append({"filter": name, "in": left, "dropped": dropped, "kept": left - dropped, "reason": reason})
            left -= dropped
        return steps

    def by_shard(self) -> list[np.ndarray]:
        """The final numbers, uint8, an array a shard."""
        if self.left_M is not None:
            start = 0
            for code_N in self.codes:
                inside = np.flatnonzero(code_N == 0)
                code_N[inside] = self.code_M[start : start + len(inside)]
                start += len(inside)
            self.left_M = None
        return self.codes


def _selection_table(
    rows: pa.Table, code_N: np.ndarray, funnel: list[dict[str, Any]], validation_fraction: float
) -> pa.Table:
    """Kept rows get their split by the hash of the stored image: the same picture is on the same side in every run."""
    reasons = np.array([None, *(f"{step['filter']}: {step['reason']}" for step in funnel)], dtype=object)
    splits = [
        None if code else VALIDATION if int(digest[:8], 16) / 2**32 < validation_fraction else TRAIN
        for code, digest in zip(code_N.tolist(), rows["sha256"].to_pylist(), strict=True)
    ]
    columns = {"key": rows["key"].combine_chunks(), "keep": pa.array(code_N == 0)}
    return pa.table(columns | {"reason": pa.array(reasons[code_N]), "split": pa.array(splits)}, schema=SCHEMA)
