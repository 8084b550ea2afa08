"""Stage `select`: columns and rules to keep or drop, with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataprep.filters.config import SelectConfig
from dataprep.io import storage
from dataprep.io.keys import shard_name
from pipeline.runtime.context import Context
from pipeline.stages.base import RowBalance, Rows, StageConfig, StageInputs, StageType, TraceView, config_key
from pipeline.store.artifact import Artifact, Shard

if TYPE_CHECKING:
    import pyarrow as pa


class SelectStageConfig(StageConfig):
    """What the stage sees of the config."""

    select: SelectConfig
    min_similarity: float | None = config_key("clip.min_similarity")
    source: str = config_key("listing.source")


@dataclass(frozen=True, kw_only=True)
class SelectInputs(StageInputs):
    """The row-aligned tables that the rules read."""

    download: Artifact
    annotate: Artifact
    score: Artifact


def run(ctx: Context[SelectStageConfig, SelectInputs]) -> None:
    """Selects over all shards at once, since duplicates are global, with one shard in memory at a time."""
    from dataprep.filters.select import PairShard, select_pairs
    from dataprep.io.parquet import write_table

    shards = ctx.join_shards(ctx.inputs.download, ctx.inputs.annotate, ctx.inputs.score)
    files = [
        PairShard(shard.files["annotate.parquet"], shard.files["score.parquet"], shard.files["download.parquet"])
        for shard in shards
    ]
    names = [shard_name(shard.id, "parquet") for shard in shards]
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:

        def write(place: int, table: pa.Table) -> None:
            write_table(table, Path(scratch) / names[place], "selection")
            storage.publish(Path(scratch) / names[place], ctx.path(names[place]))

        chosen = select_pairs(files, ctx.config.select, write, ctx.config.min_similarity)
    for example in chain.from_iterable(chosen.examples.values()):
        example["shard"] = shards[example["shard"]].id
    storage.write_json(ctx.path("funnel.json"), chosen.funnel)
    storage.write_json(ctx.path("examples.json"), chosen.examples)
    storage.write_json(ctx.path("quality.json"), _judge_filters(ctx, shards, names))
    ctx.counters |= {"rows": chosen.rows, "kept": chosen.kept, "dropped": chosen.rows - chosen.kept}
    ctx.counters |= {f"dropped_{row['filter']}": row["dropped"] for row in chosen.funnel if row["dropped"]}


def _judge_filters(
    ctx: Context[SelectStageConfig, SelectInputs], shards: Sequence[Shard], names: Sequence[str]
) -> dict[str, Any] | None:
    """Returns precision and recall of the filters; None for a list that does not say what is wrong with its rows."""
    from dataprep.filters.evaluation import evaluate_filters
    from dataprep.io.parquet import read_table

    if ctx.config.source != "scenes":
        return None
    truths = [read_table(shard.files["download.parquet"], "download", ["truth"]) for shard in shards]
    return evaluate_filters(truths, [read_table(ctx.path(name), "selection", ["reason"]) for name in names])


STAGE = StageType(
    name="select",
    run=run,
    config=SelectStageConfig,
    inputs=SelectInputs,
    counter="kept",
    rows=Rows.ALIGNED,
    balance=RowBalance(outcomes=("kept", "dropped_*"), written="rows", equal={"rows": "download.rows"}),
    trace=TraceView("selection"),
)
