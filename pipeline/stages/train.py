"""Stages `train.<name>` of task `diffusion`: one stage of the cascade each, on packed images and text embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.runtime.context import Context
from pipeline.stages.base import Placement, StageConfig, StageType, always
from pipeline.stages.denoiser_training import TrainInputs, list_denoiser_sources, train_denoiser
from pipeline.stages.training_stages import describe_learning, list_trainings
from train.loader.mix_config import DataMix
from train.tasks.diffusion_config import DiffusionTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class TrainStageConfig(StageConfig):
    """What a stage sees of the config."""

    train: DiffusionTrainingConfig
    mix: DataMix
    seed: int


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns a stage for each entry of `train` with this task."""
    return list_trainings(config, "diffusion", TrainStageConfig)


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.diffusion.train_diffusion`."""
    from train.tasks.diffusion import train_diffusion

    return train_diffusion(**arguments)


def run(ctx: Context[TrainStageConfig, TrainInputs]) -> None:
    """Trains the stage: checkpoints, log, and EMA weights to sample from."""
    train_denoiser(ctx, train_rank)


STAGE = StageType(
    name="train",
    run=run,
    config=TrainStageConfig,
    inputs=TrainInputs,
    instances=list_instances,
    instance_sources=list_denoiser_sources,
    placement=always(Placement.GROUP),
    kind="train",
    counter="parameters",
    learned=describe_learning,
)
