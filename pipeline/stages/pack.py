"""Stage `pack`: kept images as one column per training resolution."""

from __future__ import annotations

from dataclasses import dataclass

from dataprep.pack_config import PackConfig
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
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
from pipeline.store.artifact import Artifact


class PackStageConfig(StageConfig):
    """What the stage sees of the config."""

    pack: PackConfig
    max_pixels: int = config_key("download.max_pixels")


@dataclass(frozen=True, kw_only=True)
class PackInputs(StageInputs):
    """The pairs, which of them are kept, and where the faces are that are to be blurred."""

    download: Artifact
    select: Artifact
    annotate: Artifact | None


class PackWorker:
    """Packs the kept images of a shard at every training resolution."""

    def __init__(self, config: PackConfig, max_pixels: int) -> None:
        self.config, self.max_pixels = config, max_pixels

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file of the kept rows; of all downloaded rows where the shard has no selection."""
        from dataprep.pack import pack_shard

        tar, table, selection = task.tar("download"), task.table("download"), task.files.get("select.parquet")
        boxes = task.files.get("annotate.parquet")
        return pack_shard(tar, table, selection, task.output_table(), self.config, self.max_pixels, boxes)


def run(ctx: Context[PackStageConfig, PackInputs]) -> None:
    """Packs every shard."""
    arguments = {"config": ctx.config.pack, "max_pixels": ctx.config.max_pixels}
    read = [ctx.inputs.download, ctx.inputs.select, *([ctx.inputs.annotate] if ctx.inputs.annotate else [])]
    ctx.map_shards(PackWorker, arguments, ctx.join_shards(*read))


STAGE = StageType(
    name="pack",
    run=run,
    config=PackStageConfig,
    inputs=PackInputs,
    optional=lambda config, name: config.pack.blur_faces is not None,
    placement=always(Placement.SHARDS),
    rows=Rows.KEPT,
    balance=RowBalance(outcomes=("train", "validation"), written="rows", equal={"rows": "select.kept"}),
    trace=TraceView("pack", columns=("split",)),
)
