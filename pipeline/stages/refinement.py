"""Stages `train.<name>` of task `refinement`: super-resolution by the codes of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline.runtime.context import Context
from pipeline.stages.base import Placement, StageConfig, StageInputs, StageType, always
from pipeline.stages.initial_weights import check_origin, find_origin, list_origin_files
from pipeline.stages.model_files import EXPORT
from pipeline.stages.pack_training import train_on_pack
from pipeline.stages.text_encoder import find_text_width
from pipeline.stages.training_stages import describe_learning, list_trainings, place_weights
from pipeline.store.artifact import Artifact
from train.loader.mix_config import DataMix
from train.models.refiner.config import RefinerConfig
from train.tasks.refinement_config import RefinementTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class RefinementStageConfig(StageConfig):
    """What a stage sees of the config."""

    train: RefinementTrainingConfig
    mix: DataMix
    seed: int


@dataclass(frozen=True, kw_only=True)
class RefinementInputs(StageInputs):
    """Training pixels and text embeddings, row-aligned, and the stage that trained the autoencoder."""

    pack: Artifact
    embed: Artifact
    train: dict[str, Artifact]


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns a stage for each training with this task."""
    return list_trainings(config, "refinement", RefinementStageConfig)


def list_autoencoder(config: RunConfig, name: str) -> tuple[str, ...]:
    """Returns the stage that trains the autoencoder."""
    return (f"train.{_find_training(config, name).autoencoder}",)


def list_sources(config: RunConfig, name: str) -> list[str]:
    """Returns the files of the weights that a stage begins from, if any, after checking that they fit its network.

    Where the width of the text is not known yet, the ranks check shapes.
    """
    stage, text_dim = _find_training(config, name), find_text_width(config.encoder)
    if stage.init is None:
        return []
    key = f"train.{name}.init"
    origin = find_origin(stage.init, f"train.{name}", key)
    if text_dim is not None:
        import torch

        from train.initial_weights.fitting import list_model_tensors
        from train.models.refiner.refiner import Refiner

        with torch.device("meta"):
            layout = cast(RefinerConfig, stage.denoiser_config(text_dim))
            tensors = list_model_tensors(Refiner(layout, complete=False))
        check_origin(origin, stage.init, tensors, key)
    return list_origin_files(origin)


def _find_training(config: RunConfig, name: str) -> RefinementTrainingConfig:
    training = config.train[name]
    assert isinstance(training, RefinementTrainingConfig)
    return training


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.refinement.train_refinement`."""
    from train.tasks.refinement import train_refinement

    return train_refinement(**arguments)


def run(ctx: Context[RefinementStageConfig, RefinementInputs]) -> None:
    """Trains the stage: checkpoints, log, and EMA weights to sample from, with the autoencoder."""
    inputs, train = ctx.inputs, place_weights(ctx, ctx.config.train)
    autoencoder = inputs.train[train.autoencoder].path(EXPORT)
    train_on_pack(ctx, train_rank, train, inputs.pack, inputs.embed, autoencoder=autoencoder)


STAGE = StageType(
    name="train_refinement",
    run=run,
    config=RefinementStageConfig,
    inputs=RefinementInputs,
    instances=list_instances,
    optional=lambda config, name: False,
    instance_inputs=list_autoencoder,
    instance_sources=list_sources,
    placement=always(Placement.GROUP),
    kind="train",
    counter="parameters",
    learned=describe_learning,
)
