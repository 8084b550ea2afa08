"""Stage `select`: columns and rules to keep or drop, with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dataprep.filters.config import SelectConfig
from dataprep.filters.source_rules import SourceRules
from dataprep.filters.steps import FINISH, LocalRunner, StepTask, StepWorker, TaskResult, list_outputs
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from pipeline.runtime.context import Context
from pipeline.runtime.errors import StageError
from pipeline.stages.base import (
    Placement,
    RowBalance,
    Rows,
    StageConfig,
    StageInputs,
    StageType,
    TraceView,
    always,
    config_key,
)
from pipeline.store.artifact import Artifact, Shard

if TYPE_CHECKING:
    from dataprep.filters.pair_shards import PairShard
    from pipeline.config import RunConfig

EXCHANGE = "exchange"  # folder of what steps exchange, while the stage runs
ENDED = "exchange_ended"  # a file: what is left of that folder is no longer whole


class SelectStageConfig(StageConfig):
    """What the stage sees of the config."""

    select: SelectConfig
    min_similarity: float | None = config_key("clip.min_similarity")
    source: str = config_key("listing.source")
    sources: dict[str, dict[str, Any]]  # keys of `select` by source

    @classmethod
    def from_run(cls, config: RunConfig, **given: Any) -> Self:
        own = {name: source.select for name, source in config.listing.sources.items() if source.select}
        return super().from_run(config, sources=own, **given)


@dataclass(frozen=True, kw_only=True)
class SelectInputs(StageInputs):
    """The row-aligned tables that the rules read, and of several sources the listing, which says what is whose."""

    listing: Artifact | None
    download: Artifact
    annotate: Artifact
    score: Artifact


class ClusterRunner:
    """Runs the steps of a selection on the cluster; what they exchange lies in the stage's folder.

    Each task commits by itself, so a killed driver goes on where it was, within a step too.
    """

    def __init__(self, ctx: Context[SelectStageConfig, SelectInputs]) -> None:
        self.ctx = ctx

    def run(
        self, name: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: Sequence[StepTask]
    ) -> list[TaskResult]:
        """Runs the tasks, as `dataprep.filters.steps.Runner.run` says.

        Raises StageError if one keeps failing: without its rows all verdicts would be others.
        """
        subfolder = "" if name == FINISH else storage.join(EXCHANGE, name)
        counters, before = dict(self.ctx.counters), len(self.ctx.finished)
        shards = [Shard(task.id, dict(task.files)) for task in tasks]
        self.ctx.map_shards(worker, arguments, shards, subfolder=subfolder)
        if self.ctx.quarantined:
            first = self.ctx.quarantined[0]
            raise StageError(f"task {first['shard']} of step {name} failed: {first['reason']}")
        markers = {marker.id: marker for marker in self.ctx.finished[before:]}
        if subfolder:  # neither outputs of the stage nor counts of its rows
            del self.ctx.finished[before:]
            self.ctx.counters.clear()
            self.ctx.counters.update(counters)
        folder = self.ctx.path(subfolder) if subfolder else self.ctx.folder
        return [
            TaskResult(
                task.id,
                list_outputs(storage.join(folder, output.path) for output in markers[task.id].outputs),
                markers[task.id].counters,
            )
            for task in tasks
        ]

    def begin(self) -> None:
        """Removes what an ended selection left of the exchange."""
        if storage.exists(self.ctx.path(ENDED)):
            self.end()

    def end(self) -> None:
        """Removes the exchange; a half removed one is not taken for a whole one."""
        storage.write_bytes(self.ctx.path(ENDED), b"")
        storage.remove(self.ctx.path(EXCHANGE))
        storage.remove(self.ctx.path(ENDED))


def run(ctx: Context[SelectStageConfig, SelectInputs]) -> None:
    """Selects over all shards at once, since duplicates are global.

    Few rows are selected in this process, more on the cluster; the tables are the same.
    """
    from dataprep.filters.pair_shards import group_shards
    from dataprep.filters.select import select_pairs

    shards, config = _list_shards(ctx), ctx.config
    sources = _read_sources(ctx)
    if len(group_shards(shards)) > 1:
        runner = ClusterRunner(ctx)
        runner.begin()
        try:
            chosen = select_pairs(shards, config.select, runner, config.min_similarity, sources)
        except UserError:  # another config makes another folder
            runner.end()
            raise
        runner.end()
    else:
        with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
            local = LocalRunner(Path(scratch))
            chosen = select_pairs(shards, config.select, local, config.min_similarity, sources)
            for shard, table in chosen.tables.items():
                storage.publish(table, ctx.path(shard_name(shard, "parquet")))
        ctx.counters |= {"rows": chosen.rows, "kept": chosen.kept}
        ctx.counters |= {f"dropped_{row['filter']}": row["dropped"] for row in chosen.funnel if row["dropped"]}
    storage.write_json(ctx.path("funnel.json"), chosen.funnel)
    storage.write_json(ctx.path("examples.json"), chosen.examples)
    storage.write_json(ctx.path("quality.json"), _judge_filters(ctx, shards))


def _read_sources(ctx: Context[SelectStageConfig, SelectInputs]) -> SourceRules:
    """Returns the thresholds by source, and which shards are whose."""
    from dataprep.listing.writer import SOURCES_FILE

    listing = ctx.inputs.listing
    counts = listing.read_json(SOURCES_FILE) if listing is not None else {}
    starts = {name: int(found["first_shard"]) for name, found in counts.items()}
    return SourceRules(keys=ctx.config.sources, starts=starts)


def _list_shards(ctx: Context[SelectStageConfig, SelectInputs]) -> list[PairShard]:
    """Returns the shards that all inputs have, with their rows."""
    from dataprep.filters.pair_shards import PairShard

    annotate = ctx.inputs.annotate
    rows = {annotate.path(output.path): output.rows or 0 for output in annotate.manifest.outputs}
    shards = []
    for shard in ctx.join_shards(ctx.inputs.download, annotate, ctx.inputs.score):
        table, score, download = (shard.files[f"{name}.parquet"] for name in ("annotate", "score", "download"))
        shards.append(PairShard(shard.id, rows[table], table, score, download))
    return shards


def _judge_filters(ctx: Context[SelectStageConfig, SelectInputs], shards: Sequence[PairShard]) -> dict[str, Any] | None:
    """Returns precision and recall of the filters; None for a list that does not say what is wrong with its rows."""
    from dataprep.filters.evaluation import evaluate_filters
    from dataprep.io.parquet import read_table

    if ctx.config.source != "scenes":
        return None
    truths = [read_table(str(shard.downloads), "download", ["truth"]) for shard in shards]
    tables = [ctx.path(shard_name(shard.id, "parquet")) for shard in shards]
    return evaluate_filters(truths, [read_table(table, "selection", ["reason"]) for table in tables])


STAGE = StageType(
    name="select",
    run=run,
    config=SelectStageConfig,
    inputs=SelectInputs,
    optional=lambda config, name: bool(config.listing.sources),
    placement=always(Placement.SHARDS),
    counter="kept",
    rows=Rows.ALIGNED,
    balance=RowBalance(outcomes=("kept", "dropped_*"), written="rows", equal={"rows": "download.rows"}),
    trace=TraceView("selection"),
)
