"""What all stages share that train on packed images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dataprep.io import storage
from pipeline.runtime.context import Context
from pipeline.runtime.training_data import INDEX_FILE, write_shard_index
from pipeline.runtime.training_stage import train_on_cluster
from pipeline.store.artifact import Artifact
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.prior_config import PriorTrainingConfig
from train.tasks.vq_config import VqTrainingConfig

PackTraining = DiffusionTrainingConfig | PriorTrainingConfig | VqTrainingConfig


def train_on_pack(
    ctx: Context[Any, Any],
    train_rank: Callable[..., dict[str, Any]],
    train: PackTraining,
    pack: Artifact,
    embed: Artifact | None,
    vectors: Sequence[str] = (),
    **arguments: Any,
) -> None:
    """Trains on ``pack`` and, row-aligned with it, ``embed``; ``train_rank`` does so on each rank.

    ``vectors``: the pack's columns of vectors that are read too. ``arguments`` are further ones of ``train_rank``. The
    index of the shards lives as long as the training.
    """
    index, captions = ctx.path(INDEX_FILE), None if embed is None else embed.files()
    content = pack.content + ("" if embed is None else embed.content)
    columns = train.pixel_columns()
    write_shard_index(ctx, index, pack.files(), captions, columns, content, train.min_original, vectors)
    arguments |= {"index": index, "validate": pack.manifest.counters["validation"] > 0, "mix": ctx.config.mix}
    train_on_cluster(ctx, train_rank, arguments, train, ctx.config.seed)
    storage.remove(index)
