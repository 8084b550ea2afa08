"""Stages `train.<name>`: one diffusion stage of the cascade each, on packed images and text embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from pipeline.runtime.context import Context
from pipeline.runtime.training_data import INDEX_FILE, write_shard_index
from pipeline.runtime.training_stage import train_on_cluster
from pipeline.stages.base import Learning, Placement, Rows, StageConfig, StageInputs, StageType, always
from pipeline.store.artifact import Artifact, Manifest
from train.tasks.diffusion_config import DiffusionTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class TrainStageConfig(StageConfig):
    """What a stage sees of the config."""

    train: DiffusionTrainingConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrainInputs(StageInputs):
    """Training pixels and text embeddings, row-aligned."""

    pack: Artifact
    embed: Artifact


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns a stage for each entry of the config's `train`."""
    return {f"train.{name}": TrainStageConfig.from_run(config, train=part) for name, part in config.train.items()}


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.diffusion.train_diffusion`."""
    from train.tasks.diffusion import train_diffusion

    return train_diffusion(**arguments)


def run(ctx: Context[TrainStageConfig, TrainInputs]) -> None:
    """Trains the stage: checkpoints, log, and EMA weights to sample from."""
    pack, embed, train = ctx.inputs.pack, ctx.inputs.embed, ctx.config.train
    index, content = ctx.path(INDEX_FILE), pack.content + embed.content
    write_shard_index(ctx, index, pack.files(), embed.files(), train.pixel_columns(), content, train.min_original)
    arguments = {"index": index, "validate": pack.manifest.counters["validation"] > 0}
    train_on_cluster(ctx, train_rank, arguments, train, ctx.config.seed)
    storage.remove(index)


def describe_learning(manifest: Manifest) -> Learning:
    """Returns what a finished stage learned from the pairs."""
    train = TrainStageConfig.from_manifest(manifest).train
    return Learning("image and caption", train.steps, train.batch_size, Rows.KEPT)


STAGE = StageType(
    name="train",
    run=run,
    config=TrainStageConfig,
    inputs=TrainInputs,
    instances=list_instances,
    placement=always(Placement.GROUP),
    kind="train",
    counter="parameters",
    learned=describe_learning,
)
