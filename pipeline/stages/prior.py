"""Stage `train.<name>` of task `prior`: predicts CLIP's embedding of an image from its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.runtime.context import Context
from pipeline.stages.base import Placement, StageConfig, StageType, always
from pipeline.stages.denoiser_training import TrainInputs, list_denoiser_sources, train_denoiser
from pipeline.stages.training_stages import describe_learning, list_trainings
from train.loader.mix_config import DataMix
from train.tasks.prior_config import PriorTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class PriorTrainStageConfig(StageConfig):
    """What the stage sees of the config."""

    train: PriorTrainingConfig
    mix: DataMix
    seed: int


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns a stage for each entry of `train` with this task."""
    return list_trainings(config, "prior", PriorTrainStageConfig)


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.prior.train_prior`."""
    from train.tasks.prior import train_prior

    return train_prior(**arguments)


def run(ctx: Context[PriorTrainStageConfig, TrainInputs]) -> None:
    """Trains the prior: checkpoints, log, and EMA weights to sample from."""
    train_denoiser(ctx, train_rank)


STAGE = StageType(
    name="prior",
    run=run,
    config=PriorTrainStageConfig,
    inputs=TrainInputs,
    instances=list_instances,
    instance_sources=list_denoiser_sources,
    placement=always(Placement.GROUP),
    kind="train",
    counter="parameters",
    learned=describe_learning,
)
