"""Stage `pack`: kept images as one column per training resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dataprep.io.caption_mix import without_weights
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

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class PackStageConfig(StageConfig):
    """What the stage sees of the config: which captions to pack, but not how often to train on each."""

    pack: PackConfig
    source_captions: dict[str, tuple[str, ...]]
    max_pixels: int = config_key("download.max_pixels")

    @classmethod
    def from_run(cls, config: RunConfig, **given: Any) -> Self:
        pack = config.pack.model_copy(update={"captions": without_weights(config.pack.captions)})
        sources = config.listing.list_sources()
        captions = {name: (*one.captions,) for name, one in sources.items() if one.captions is not None}
        return super().from_run(config, pack=pack, source_captions=captions, **given)


@dataclass(frozen=True, kw_only=True)
class PackInputs(StageInputs):
    """The pairs, which are kept, faces to be blurred, captions that were written, and features to train on, if any."""

    download: Artifact
    select: Artifact
    annotate: Artifact | None
    caption: Artifact | None
    score: Artifact | None


class PackWorker:
    """Packs the kept images of a shard at every training resolution."""

    def __init__(
        self, config: PackConfig, max_pixels: int, source_captions: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        self.config, self.max_pixels, self.source_captions = config, max_pixels, source_captions

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file of the kept rows; of all downloaded rows where the shard has no selection."""
        from dataprep.pack import pack_shard

        tar, table, selection = task.tar("download"), task.table("download"), task.files.get("select.parquet")
        return pack_shard(
            *(tar, table, selection, task.output_table(), self.config, self.max_pixels),
            annotations_path=task.files.get("annotate.parquet"),
            source_captions=self.source_captions,
            captions_path=task.files.get("caption.parquet"),
            scores_path=task.files.get("score.parquet"),
        )


def run(ctx: Context[PackStageConfig, PackInputs]) -> None:
    """Packs every shard."""
    arguments = {
        "config": ctx.config.pack,
        "source_captions": ctx.config.source_captions,
        "max_pixels": ctx.config.max_pixels,
    }
    inputs = ctx.inputs
    read = (inputs.download, inputs.select, inputs.annotate, inputs.caption, inputs.score)
    ctx.map_shards(PackWorker, arguments, ctx.feed_shards(*(artifact for artifact in read if artifact is not None)))


def uses_input(config: RunConfig, name: str) -> bool:
    """Returns whether the stage reads an input that not every run has."""
    used = {"annotate": config.pack.blur_faces is not None, "caption": config.caption.model is not None}
    return (used | {"score": bool(config.pack.features)})[name]


STAGE = StageType(
    name="pack",
    run=run,
    config=PackStageConfig,
    inputs=PackInputs,
    optional=uses_input,
    placement=always(Placement.SHARDS),
    streams=("caption",),
    rows=Rows.KEPT,
    balance=RowBalance(outcomes=("train", "validation"), written="rows", equal={"rows": "select.kept"}),
    trace=TraceView("pack", columns=("split",)),
)
