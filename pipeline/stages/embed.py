"""Stage `embed`: kept captions to text embeddings at their true length."""

from __future__ import annotations

from dataclasses import dataclass

from dataprep.io import storage
from dataprep.text.config import EmbedConfig
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.base import Placement, RowBalance, Rows, StageConfig, StageInputs, StageType, TraceView, always
from pipeline.stages.text_encoder import encoder_location
from pipeline.store.artifact import Artifact


class EmbedStageConfig(StageConfig):
    """What the stage sees of the config."""

    embed: EmbedConfig


@dataclass(frozen=True, kw_only=True)
class EmbedInputs(StageInputs):
    """The kept captions, and the text encoder; with `text_tuning` the tuned one."""

    pack: Artifact
    encoder: Artifact
    text_tuning: Artifact | None


class EmbedWorker:
    """Embeds the captions of a pack shard."""

    def __init__(self, config: EmbedConfig, encoder: str) -> None:
        from dataprep.text.embed import load_encoder
        from pipeline.runtime.device import worker_device

        self.config = config
        self.encoder = load_encoder(storage.local_folder(encoder), config, worker_device())

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file, row-aligned with the pack's."""
        from dataprep.text.embed import embed_shard

        return embed_shard(task.table("pack"), task.output_table(), self.encoder, self.config)


def run(ctx: Context[EmbedStageConfig, EmbedInputs]) -> None:
    """Embeds every pack shard, on GPUs where there are any."""
    arguments = {"config": ctx.config.embed, "encoder": encoder_location(ctx.inputs.text_tuning or ctx.inputs.encoder)}
    ctx.map_shards(EmbedWorker, arguments, ctx.feed_shards(ctx.inputs.pack), on_gpu=True)
    # The manifest holds the codec's mean error per distinct caption, in parts per million.
    summed = ctx.counters.pop("codec_error_ppm_sum", 0)
    ctx.counters["codec_error_ppm"] = round(summed / max(1, ctx.counters.get("distinct", 0)))


STAGE = StageType(
    name="embed",
    run=run,
    config=EmbedStageConfig,
    inputs=EmbedInputs,
    optional=lambda config, name: config.text_tuning is not None,
    placement=always(Placement.MODELS),
    streams=("pack",),
    counter="captions",
    rows=Rows.KEPT,
    balance=RowBalance(written="captions", equal={"rows": "pack.rows"}),
    trace=TraceView("embed", columns=("length", "dim", "codec")),
)
