"""Checks that no row of a run is unaccounted for: in every stage, rows in = rows out + rows by reason.

Each stage declares its counters as a `pipeline.stages.base.RowBalance`. Rows of shards that were quarantined, here or
in an input, are a reason too: they are counted by shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from dataprep.io.parquet import read_table
from dataprep.io.wording import count_of
from pipeline.stages.base import RowBalance
from pipeline.stages.graph import stage_type
from pipeline.store.artifact import FORGOTTEN_ROWS, Artifact, ShardRecord
from pipeline.store.run import Run


def find_unaccounted_rows(run: Run) -> dict[str, list[str]]:
    """Returns a message per sum that is wrong, by stage, of every finished stage of ``run``."""
    return {stage: list(_check_stage(run, artifact)) for stage, artifact in run.artifacts().items()}


def _check_stage(run: Run, artifact: Artifact) -> Iterator[str]:
    kind = stage_type(artifact.manifest.stage)
    balance = kind.balance if kind else None
    counters = _sum_counters(artifact)
    if balance is None or (balance.rows not in counters and not artifact.shards):
        return  # a model that was only loaded
    yield from _check_outcomes(balance, counters)
    expected = counters[balance.written] - counters[FORGOTTEN_ROWS] if balance.written else 0
    if balance.written and (written := _count_written(artifact)) != expected:
        gone = f", {counters[FORGOTTEN_ROWS]} of them forgotten" if counters[FORGOTTEN_ROWS] else ""
        yield f"{balance.written}={counters[balance.written]}{gone}, but its tables have {count_of(written, 'row')}"
    for own, theirs in balance.equal.items():
        stage, _, name = theirs.partition(".")
        fingerprint = artifact.manifest.inputs.get(stage)
        source = run.artifact(stage, fingerprint) if fingerprint else None
        if source is not None:
            yield from _check_equal(artifact, counters[own], own, source, name)


def _check_outcomes(balance: RowBalance, counters: Counter[str]) -> Iterator[str]:
    if not balance.outcomes:
        return
    found = {name: counters[name] for name in counters if _is_outcome(name, balance.outcomes)}
    if (total := sum(found.values())) != counters[balance.rows]:
        parts = " + ".join(f"{name}={value}" for name, value in found.items())
        yield f"{balance.rows}={counters[balance.rows]}, but {parts or 'its outcomes'} make {total}"


def _is_outcome(name: str, outcomes: Collection[str]) -> bool:
    return name in outcomes or any(item.endswith("*") and name.startswith(item[:-1]) for item in outcomes)


def _check_equal(artifact: Artifact, value: int, own: str, source: Artifact, name: str) -> Iterator[str]:
    given = _sum_counters(source)[name]
    shards = {shard.id for shard in source.shards}
    missing = shards - {shard.id for shard in artifact.shards} if artifact.shards else set[int]()
    missing |= {int(item["shard"]) for item in artifact.manifest.quarantined}
    lost = sum(_count_in_shard(source, shard, name) for shard in missing)
    if value != given - lost:
        text = f"{own}={value}, but {source.manifest.stage} has {name}={given}"
        yield f"{text}, {lost} of them in {count_of(len(missing), 'shard')} left out" if missing else text


def _latest_records(artifact: Artifact) -> dict[int, ShardRecord]:
    """Returns the record of each shard's last pass."""
    return {record.id: record for record in sorted(artifact.manifest.shards, key=lambda item: item.subfolder)}


def _sum_counters(artifact: Artifact) -> Counter[str]:
    """Returns the stage's counters; those of shards summed over their last passes, since each pass counts all rows."""
    summed = Counter[str]()
    for record in _latest_records(artifact).values():
        summed.update(record.counters)
    return Counter({**artifact.manifest.counters, **summed})


def _count_written(artifact: Artifact) -> int:
    rows = {artifact.path(output.path): output.rows or 0 for output in artifact.manifest.outputs}
    return sum(rows[shard.files["parquet"]] for shard in artifact.shards if "parquet" in shard.files)


def _count_in_shard(source: Artifact, shard: int, name: str) -> int:
    """Returns a counter's value in one shard."""
    if record := _latest_records(source).get(shard):
        return record.counters.get(name, 0)
    path = next((item.files["parquet"] for item in source.shards if item.id == shard), None)
    if path is None:
        return 0
    if name == "kept":  # of a selection, which is made over all shards at once
        return sum(read_table(path, "selection", ["keep"])["keep"].to_pylist())
    return next(output.rows or 0 for output in source.manifest.outputs if source.path(output.path) == path)
