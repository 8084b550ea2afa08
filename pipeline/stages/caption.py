"""Stage `caption`: further captions of the kept images, by a vision-language model; if the config names one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dataprep.io import storage
from eval.captioning.config import CaptionConfig
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
from pipeline.stages.model_files import list_model_files, resolve_model_name
from pipeline.store.artifact import Artifact

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class CaptionStageConfig(StageConfig):
    """What the stage sees of the config: which captions each source is trained on, but not how often."""

    caption: CaptionConfig
    names: dict[str, tuple[str, ...]]  # source -> prompts to answer
    max_pixels: int = config_key("download.max_pixels")

    @classmethod
    def from_run(cls, config: RunConfig, **given: Any) -> Self:
        prompts = config.caption.prompts
        names = {
            source: tuple(name for name in captions if name in prompts)
            for source, captions in config.list_captions().items()
        }
        return super().from_run(config, names=names, **given)


@dataclass(frozen=True, kw_only=True)
class CaptionInputs(StageInputs):
    """The images, and which of them are kept."""

    download: Artifact
    select: Artifact


class CaptionWorker:
    """Writes captions of the kept images of a shard."""

    process_kind = "vision"  # a process that has imported transformers for text alone cannot load every such model

    def __init__(
        self, model: str, config: CaptionConfig, names: Mapping[str, tuple[str, ...]], max_pixels: int
    ) -> None:
        from eval.captioning.vision_language_model import VisionLanguageModel
        from pipeline.runtime.device import count_decode_threads, worker_device

        self.threads = count_decode_threads()
        self.model = VisionLanguageModel.load(storage.local_folder(model), config.dtype, worker_device())
        self.config, self.names, self.max_pixels = config, names, max_pixels

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file, row-aligned with the download's."""
        from dataprep.images.decode import decode_rgb, read_shard_images
        from dataprep.io.source_column import read_source
        from eval.captioning.caption_shard import caption_shard

        source = read_source(task.table("download"))
        decode = partial(decode_rgb, max_pixels=self.max_pixels)
        images, table, out = read_shard_images(task.tar("download")), task.table("select"), task.output_table()
        names = self.names.get(source, ())
        return caption_shard(images, table, out, self.model, self.config, names, decode, self.threads)


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns the stage where the config names a model."""
    return {"caption": CaptionStageConfig.from_run(config)} if config.caption.model is not None else {}


def list_sources(config: RunConfig) -> list[str]:
    """Returns the files of a model in a local folder, checked."""
    model = config.caption.model
    assert model is not None
    if not Path(model).exists():
        return []  # a hub name
    from eval.captioning.model_folder import check_model_folder

    check_model_folder(model)
    return list_model_files(model)


def run(ctx: Context[CaptionStageConfig, CaptionInputs]) -> None:
    """Writes captions for every shard, on GPUs where there are any."""
    config = ctx.config.caption
    arguments = {
        "model": resolve_model_name(config.model),
        "config": config.model_copy(update={"model": None}),
        "names": ctx.config.names,
        "max_pixels": ctx.config.max_pixels,
    }
    ctx.map_shards(CaptionWorker, arguments, ctx.join_shards(ctx.inputs.download, ctx.inputs.select), on_gpu=True)


STAGE = StageType(
    name="caption",
    run=run,
    config=CaptionStageConfig,
    inputs=CaptionInputs,
    instances=list_instances,
    sources=list_sources,
    placement=always(Placement.MODELS),
    counter="captions",
    rows=Rows.ALIGNED,
    balance=RowBalance(outcomes=("captioned", "left_out"), written="rows", equal={"rows": "select.rows"}),
    trace=TraceView("captions"),
)
