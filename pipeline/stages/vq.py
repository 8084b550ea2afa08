"""Stages `train.<name>` of task `vq`: an autoencoder with a codebook each, on packed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.runtime.context import Context
from pipeline.stages.base import Placement, StageConfig, StageInputs, StageType, always
from pipeline.stages.initial_weights import check_origin, find_origin, list_origin_files
from pipeline.stages.pack_training import train_on_pack
from pipeline.stages.training_stages import describe_learning, list_trainings, place_weights
from pipeline.store.artifact import Artifact
from train.loader.mix_config import DataMix
from train.tasks.vq_config import VqTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class VqTrainStageConfig(StageConfig):
    """What a stage sees of the config."""

    train: VqTrainingConfig
    mix: DataMix
    seed: int


@dataclass(frozen=True, kw_only=True)
class VqInputs(StageInputs):
    """Training pixels; and for a discriminator that sees captions their embeddings, row-aligned."""

    pack: Artifact
    embed: Artifact | None


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns a stage for each training with this task."""
    return list_trainings(config, "vq", VqTrainStageConfig)


def list_embeddings(config: RunConfig, name: str) -> tuple[str, ...]:
    """Returns the stage of the embeddings, if they are needed."""
    adversarial = _find_training(config, name).adversarial
    return ("embed",) if adversarial is not None and adversarial.text else ()


def list_sources(config: RunConfig, name: str) -> list[str]:
    """Returns the files of the weights that a stage begins from, if any, after checking that they fit its network."""
    stage = _find_training(config, name)
    if stage.init is None:
        return []
    key = f"train.{name}.init"
    origin = find_origin(stage.init, f"train.{name}", key)
    import torch

    from train.initial_weights.fitting import list_model_tensors
    from train.models.vq.autoencoder import VqAutoencoder

    with torch.device("meta"):
        tensors = list_model_tensors(VqAutoencoder(stage.autoencoder_config()))
    check_origin(origin, stage.init, tensors, key)
    return list_origin_files(origin)


def _find_training(config: RunConfig, name: str) -> VqTrainingConfig:
    training = config.train[name]
    assert isinstance(training, VqTrainingConfig)
    return training


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.vq.train_vq`."""
    from train.tasks.vq import train_vq

    return train_vq(**arguments)


def run(ctx: Context[VqTrainStageConfig, VqInputs]) -> None:
    """Trains the autoencoder: checkpoints, log, and EMA weights with the codebook."""
    train_on_pack(ctx, train_rank, place_weights(ctx, ctx.config.train), ctx.inputs.pack, ctx.inputs.embed)


STAGE = StageType(
    name="train_vq",
    run=run,
    config=VqTrainStageConfig,
    inputs=VqInputs,
    instances=list_instances,
    optional=lambda config, name: False,
    instance_inputs=list_embeddings,
    instance_sources=list_sources,
    placement=always(Placement.GROUP),
    kind="train",
    counter="parameters",
    learned=describe_learning,
)
