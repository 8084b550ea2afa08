"""Decides which pairs to train on: selection tables, funnel, examples and the train/validation split.

Reads columns only, never an image, so that a changed threshold costs this stage and its successors. Groups of shards
are worked through by tasks of a `Runner`: row filters where the columns are, set filters by exchanging records. The
tables are the same for any runner and any grouping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dataprep.filters.base import RowFilter
from dataprep.filters.config import SelectConfig, make_set_filters
from dataprep.filters.exchange import VERDICT
from dataprep.filters.left_rows import (
    CODES,
    ORIGINALS,
    ApplyVerdicts,
    LeftRows,
    read_shard_state,
    write_state,
)
from dataprep.filters.pair_shards import SHARD_ROWS, Groups, PairShard, group_shards, open_shards
from dataprep.filters.source_rules import ALL, SourceRules, list_filter_names
from dataprep.filters.steps import FINISH, OpenTask, Runner, StepTask, TaskResult, place_output
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.keys import sample_key, shard_name
from dataprep.io.parquet import read_table, write_table

TRAIN, VALIDATION = "train", "validation"
EXAMPLES = 8  # dropped rows listed per filter
SCHEMA = pa.schema(
    {"key": pa.string(), "keep": pa.bool_(), "reason": pa.string(), "split": pa.string(), "duplicate_of": pa.string()}
)
REASONS = "reasons.json"


@dataclass
class Selection:
    """Result of a selection.

    ``funnel`` has one dict per filter, in order: filter, in, dropped, kept, reason; of several sources also
    ``sources``, the same four by source, of those that the filter judged. ``examples`` maps each filter to
    the first `EXAMPLES` rows that it dropped: shard (number) and key. ``tables`` are the selection tables by shard.
    """

    rows: int = 0
    kept: int = 0
    funnel: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tables: dict[int, str] = field(default_factory=dict)


def select_pairs(
    shards: Sequence[PairShard],
    config: SelectConfig,
    runner: Runner,
    min_similarity: float | None = None,
    sources: SourceRules | None = None,
) -> Selection:
    """Selects over all shards together; the last step of ``runner`` writes each shard's selection table.

    Columns of a selection table: key, keep, reason (null if kept, else "filter: why"), split ("train" or "validation",
    null if dropped), duplicate_of (the key of the row that a dropped one repeats, or null).

    Raises:
        UserError: a filter's column is missing, or no row is left; no table has been written then.
    """
    available = shards[0].list_columns()
    sources = sources or SourceRules()
    filters = sources.make_filters(config, available, min_similarity)
    names = list_filter_names(filters)
    set_filters = make_set_filters(config, available)
    grouped = group_shards(shards)
    groups = Groups(tuple(some[0].id for some in grouped), tuple(some[-1].id + 1 for some in grouped))
    columns = _list_columns([rule for own in filters.values() for rule in own.values()])
    arguments = {"config": config, "available": sorted(available), "min_similarity": min_similarity, "sources": sources}
    tasks = [
        StepTask(number, {name: path for shard in some for name, path in shard.list_files(columns).items()})
        for number, some in enumerate(grouped)
    ]
    state = runner.run("rows", JudgeRows, arguments, tasks)
    rows = sum(result.counters["rows"] for result in state)
    funnel = _Funnel(rows)
    reasons = _read_reasons(state, filters)
    for name in names:
        why = {source: reasons[source][name] for source, own in filters.items() if name in own}
        funnel.add(name, why, sum(result.counters[f"dropped_{name}"] for result in state))
    for name, rule in set_filters.items():
        dropped = 0
        if funnel.left:
            left = LeftRows(runner, grouped, groups, state, funnel.left, name)
            verdicts = rule.decide(left)
            dropped = verdicts.dropped
            if dropped:
                arguments = {"code": len(funnel.steps) + 1, "verdicts": verdicts, "groups": groups}
                state = left.run_groups("apply", ApplyVerdicts, arguments, ())
        funnel.add(name, dict.fromkeys(filters, rule.reason), dropped)
    _refuse_empty(funnel)
    return _write_tables(shards, config, runner, groups, state, funnel, sources)


class _Funnel:
    """Counts of each filter, in order."""

    def __init__(self, rows: int) -> None:
        self.rows = self.left = rows
        self.steps: list[dict[str, Any]] = []
        self.reasons: list[Mapping[str, str]] = []  # of each step, by source

    def add(self, name: str, reasons: Mapping[str, str], dropped: int) -> None:
        """Adds the next filter; ``reasons`` by source."""
        kept = self.left - dropped
        told = {source: why for source, why in reasons.items() if why}
        distinct = list(dict.fromkeys(told.values()))
        several = "; ".join(f"{source}: {why}" for source, why in told.items())
        reason = several if len(distinct) > 1 else "".join(distinct)
        self.steps.append({"filter": name, "in": self.left, "dropped": dropped, "kept": kept, "reason": reason})
        self.reasons.append(reasons)
        self.left = kept

    def describe(self, source: str) -> list[str]:
        """Returns why each filter, in order, drops a row of a source, as selection tables say."""
        named = zip(self.steps, self.reasons, strict=True)
        return [f"{step['filter']}: {reasons.get(source, '')}" for step, reasons in named]

    def add_sources(self, rows: Mapping[str, int], dropped: Mapping[str, Mapping[str, int]]) -> None:
        """Adds the counts of each source: its rows, and by filter those that were dropped."""
        left = dict(rows)
        for step, reasons in zip(self.steps, self.reasons, strict=True):
            step["sources"] = {}
            for source, why in reasons.items():
                count, before = dropped.get(source, {}).get(step["filter"], 0), left.get(source, 0)
                left[source] = before - count
                step["sources"][source] = {"in": before, "dropped": count, "kept": before - count, "reason": why}


def _list_columns(rules: Iterable[RowFilter]) -> list[str]:
    return list(dict.fromkeys(name for rule in rules for name in rule.columns))


def _refuse_empty(funnel: _Funnel) -> None:
    if funnel.left == 0:
        worst = max(funnel.steps, key=lambda step: step["dropped"])
        raise UserError(
            f"select: nothing is left of {funnel.rows} rows; {worst['filter']} dropped {worst['dropped']} "
            f"({worst['reason']}): loosen it or check the source"
        )


def _read_reasons(
    state: Sequence[TaskResult], filters: Mapping[str, Mapping[str, RowFilter]]
) -> dict[str, dict[str, str]]:
    """Returns why each row filter drops rows of each source, from the groups in which it had rows to judge."""
    reasons = {source: dict.fromkeys(own, "") for source, own in filters.items()}
    for result in state:
        if all(why for own in reasons.values() for why in own.values()):
            break
        for source, own in storage.read_json(result.files[REASONS]).items():
            reasons[source] |= {name: why for name, why in own.items() if why}
    return reasons


class JudgeRows:
    """Worker: applies the row filters of each shard's source to a group of shards and writes the group's state."""

    def __init__(
        self, config: SelectConfig, available: Sequence[str], min_similarity: float | None, sources: SourceRules
    ) -> None:
        self.sources, self.filters = sources, sources.make_filters(config, available, min_similarity)
        self.names = list_filter_names(self.filters)

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the state and the reasons; counts rows and, by filter, dropped rows."""
        shards = list(open_shards(task.files))
        reasons: dict[str, dict[str, str]] = {}
        counts: Counter[str] = Counter()
        judged = ((shard.id - shards[0].id, self._judge(shard, reasons, counts)) for shard in shards)
        none = np.zeros(0, VERDICT)
        write_state(task, shards[-1].id + 1 - shards[0].id, ((place, code_N, none) for place, code_N in judged))
        storage.write_json(str(place_output(task, REASONS)), reasons)
        names = ("rows", *(f"dropped_{name}" for name in self.names))
        return {name: counts[name] for name in names}

    def _judge(self, shard: PairShard, reasons: dict[str, dict[str, str]], counts: Counter[str]) -> np.ndarray:
        """Returns for each row the number of the filter that dropped it, from 1, or 0."""
        source = self.sources.find_source(shard.id)
        filters, why = self.filters[source], reasons.setdefault(source, {})
        rows = shard.read_columns(_list_columns(filters.values()))
        assert rows.num_rows == shard.rows <= SHARD_ROWS, f"shard {shard.id}: {rows.num_rows} rows"
        code_N = np.zeros(rows.num_rows, np.uint8)
        left_M = np.arange(rows.num_rows)
        counts["rows"] += rows.num_rows
        for code, name in enumerate(self.names, 1):
            if name not in filters:
                continue
            if not len(left_M):
                break
            rule = filters[name]
            part = rows.select(rule.columns)
            keep_M, why[name] = rule.judge(part if len(left_M) == len(code_N) else part.take(left_M))
            code_N[left_M[~keep_M]] = code
            counts[f"dropped_{name}"] += int((~keep_M).sum())
            left_M = left_M[keep_M]
        return code_N


def _write_tables(
    shards: Sequence[PairShard],
    config: SelectConfig,
    runner: Runner,
    groups: Groups,
    state: Sequence[TaskResult],
    funnel: _Funnel,
    sources: SourceRules,
) -> Selection:
    names = [step["filter"] for step in funnel.steps]
    arguments = {
        "codes": [result.files[CODES] for result in state],
        "originals": [result.files[ORIGINALS] for result in state],
        "groups": groups,
        "reasons": {source: funnel.describe(source) for source in sources.starts or (ALL,)},
        "sources": sources,
        "names": names,
        "validation_fraction": config.validation_fraction,
    }
    tasks = [StepTask(shard.id, shard.list_files(("key", "sha256"))) for shard in shards]
    written = runner.run(FINISH, WriteTable, arguments, tasks)
    tables = {result.id: result.files[shard_name(result.id, "parquet")] for result in written}
    examples = _find_examples(written, tables, names)
    if sources.starts:
        _count_sources(funnel, written, sources)
    return Selection(funnel.rows, funnel.left, funnel.steps, examples, tables)


def _count_sources(funnel: _Funnel, written: Sequence[TaskResult], sources: SourceRules) -> None:
    """Adds the counts of each source to the funnel, from those of the shards."""
    rows: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    for result in written:
        source = sources.find_source(result.id)
        rows[source] += result.counters["rows"]
        for step in funnel.steps:
            name = step["filter"]
            dropped.setdefault(source, Counter())[name] += result.counters.get(f"dropped_{name}", 0)
    funnel.add_sources(rows, dropped)


def _find_examples(
    written: Sequence[TaskResult], tables: dict[int, str], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Returns the first rows that each filter dropped; reads only tables that have one that is wanted."""
    examples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for result in written:
        wanted = {name for name in names if len(examples[name]) < EXAMPLES and result.counters.get(f"dropped_{name}")}
        if wanted:
            table = read_table(tables[result.id], "selection", ["key", "reason"])
            for key, reason in zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True):
                name = reason and reason.split(":")[0]
                if name in wanted and len(examples[name]) < EXAMPLES:
                    examples[name].append({"shard": result.id, "key": key})
    return examples


class WriteTable:
    """Worker: writes a shard's selection table from the state of its group."""

    def __init__(
        self,
        codes: Sequence[str],
        originals: Sequence[str],
        groups: Groups,
        reasons: Mapping[str, Sequence[str]],
        names: Sequence[str],
        validation_fraction: float,
        sources: SourceRules,
    ) -> None:
        self.codes, self.originals, self.groups, self.names = codes, originals, groups, names
        self.reasons = {source: np.array([None, *own], dtype=object) for source, own in reasons.items()}
        self.sources = sources
        self.validation_fraction = validation_fraction

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes one Parquet file; counts rows, kept and, by filter, dropped rows."""
        (shard,) = open_shards(task.files)
        group = int(self.groups.find(np.array([shard.id * SHARD_ROWS]))[0])
        place = shard.id - self.groups.starts[group]
        code_N, original_K = read_shard_state(self.codes[group], self.originals[group], place)
        table = self._build_table(shard, code_N, original_K)
        write_table(table, task.out / shard_name(shard.id, "parquet"), "selection")
        count_C = np.bincount(code_N, minlength=len(self.names) + 1).tolist()
        dropped = {f"dropped_{name}": count for name, count in zip(self.names, count_C[1:], strict=True) if count}
        return {"rows": len(code_N), "kept": count_C[0]} | dropped

    def _build_table(self, shard: PairShard, code_N: np.ndarray, original_K: np.ndarray) -> pa.Table:
        """Builds the table; the split follows the hash of the stored image, so it is the same in every run."""
        rows = shard.read_columns(["key", "sha256"])
        limit = self.validation_fraction
        splits = [
            None if code else VALIDATION if int(digest[:8], 16) / 2**32 < limit else TRAIN
            for code, digest in zip(code_N.tolist(), rows["sha256"].to_pylist(), strict=True)
        ]
        same_N = np.full(len(code_N), None, dtype=object)
        same_N[original_K["position"] - shard.id * SHARD_ROWS] = [
            sample_key(*divmod(original, SHARD_ROWS)) for original in original_K["original"].tolist()
        ]
        return pa.table(
            {
                "key": rows["key"].combine_chunks(),
                "keep": pa.array(code_N == 0),
                "reason": pa.array(self.reasons[self.sources.find_source(shard.id)][code_N], pa.string()),
                "split": pa.array(splits, pa.string()),
                "duplicate_of": pa.array(same_N, pa.string()),
            },
            schema=SCHEMA,
        )
