"""Stage `score`: CLIP similarity of every pair, and what the heads say, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dataprep.io import storage
from eval.clip.config import HeadConfig, ScoreConfig
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
from pipeline.stages.clip import ClipSpec, read_clip_spec
from pipeline.store.artifact import Artifact

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class ScoreStageConfig(StageConfig):
    """What the stage sees of the config."""

    score: ScoreConfig
    max_pixels: int = config_key("download.max_pixels")


@dataclass(frozen=True, kw_only=True)
class ScoreInputs(StageInputs):
    """The pairs to score, and the CLIP."""

    download: Artifact
    clip: Artifact


class ScoreWorker:
    """Scores the pairs of a download shard with CLIP, and with the heads and labels on its features."""

    def __init__(self, clip: ClipSpec, max_pixels: int, score: ScoreConfig) -> None:
        from eval.clip.score_shard import load_heads
        from eval.clip.scorer import ClipScorer
        from pipeline.runtime.device import count_decode_threads, worker_device

        self.threads = count_decode_threads()
        self.scorer = ClipScorer.load(clip, worker_device())
        self.max_pixels, self.features = max_pixels, score.feature_columns()
        self.heads = load_heads(score, self.scorer)

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file, row-aligned with the download's."""
        from dataprep.images.decode import decode_rgb, read_shard_images
        from eval.clip.score_shard import score_shard

        images, table, out = read_shard_images(task.tar("download")), task.table("download"), task.output_table()
        decode = partial(decode_rgb, max_pixels=self.max_pixels)
        return score_shard(images, table, out, self.scorer, self.heads, self.features, decode, self.threads)


def list_sources(config: RunConfig) -> list[str]:
    """Returns the heads' weight files: their bytes count, and a missing file is found before any work."""
    if not config.score.heads:
        return []
    from eval.clip.heads import find_head_files

    return find_head_files(config.score.heads)


def locate_heads(heads: Mapping[str, HeadConfig]) -> dict[str, HeadConfig]:
    """Returns the heads with absolute paths, which hold in every worker."""
    return {name: head.model_copy(update={"path": storage.absolute(head.path)}) for name, head in heads.items()}


def run(ctx: Context[ScoreStageConfig, ScoreInputs]) -> None:
    """Scores every downloaded shard, on GPUs where there are any."""
    score = ctx.config.score
    arguments = {
        "clip": read_clip_spec(ctx.inputs.clip),
        "max_pixels": ctx.config.max_pixels,
        "score": score.model_copy(update={"heads": locate_heads(score.heads)}),
    }
    ctx.map_shards(ScoreWorker, arguments, ctx.feed_shards(ctx.inputs.download), on_gpu=True)


STAGE = StageType(
    name="score",
    run=run,
    config=ScoreStageConfig,
    inputs=ScoreInputs,
    placement=always(Placement.MODELS),
    streams=("download",),
    sources=list_sources,
    counter="scored",
    rows=Rows.ALIGNED,
    balance=RowBalance(
        outcomes=("scored", "without_image"),
        written="rows",
        equal={"rows": "download.rows", "scored": "download.success"},
    ),
    trace=TraceView("scores"),
)
