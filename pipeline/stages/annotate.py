"""Stage `annotate`: sizes, perceptual hashes, caption statistics and language as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataprep.annotate_config import AnnotateConfig
from dataprep.images.faces import find_model_files
from dataprep.images.text_area import find_text_model_files
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

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class AnnotateStageConfig(StageConfig):
    """What the stage sees of the config."""

    annotate: AnnotateConfig
    max_pixels: int = config_key("download.max_pixels")


@dataclass(frozen=True, kw_only=True)
class AnnotateInputs(StageInputs):
    """The pairs to measure."""

    download: Artifact


class AnnotateWorker:
    """Measures the pairs of a download shard."""

    def __init__(self, config: AnnotateConfig, max_pixels: int) -> None:
        self.config, self.max_pixels = config, max_pixels

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file, row-aligned with the download's."""
        from dataprep.annotate import annotate_shard

        tar, table = task.tar("download"), task.table("download")
        return annotate_shard(tar, table, task.output_table(), self.config, self.max_pixels)


def list_sources(config: RunConfig) -> list[str]:
    """Returns the detectors' files: their bytes count, and one that is missing is found before any work."""
    faces, text = config.annotate.faces, config.annotate.text
    return [*(find_model_files(faces) if faces else ()), *(find_text_model_files(text) if text else ())]


def run(ctx: Context[AnnotateStageConfig, AnnotateInputs]) -> None:
    """Annotates every downloaded shard."""
    arguments = {"config": ctx.config.annotate, "max_pixels": ctx.config.max_pixels}
    ctx.map_shards(AnnotateWorker, arguments, ctx.feed_shards(ctx.inputs.download))


STAGE = StageType(
    name="annotate",
    run=run,
    config=AnnotateStageConfig,
    inputs=AnnotateInputs,
    placement=always(Placement.SHARDS),
    streams=("download",),
    sources=list_sources,
    counter="ok",
    rows=Rows.ALIGNED,
    balance=RowBalance(
        outcomes=("ok", "without_image"), written="rows", equal={"rows": "download.rows", "ok": "download.success"}
    ),
    trace=TraceView("annotations", hidden=("key", "caption", "sha256")),
)
