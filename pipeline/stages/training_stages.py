"""What the stages `train.<name>` share, whatever their task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.runtime.context import Context
from pipeline.stages.base import Learning, Rows, StageConfig
from pipeline.stages.initial_weights import ORIGIN_FILE, find_origin, place_init, write_origin
from pipeline.store.artifact import Artifact, Manifest
from train.config import TrainConfig
from train.loader.mix_config import DataMix
from train.tasks.cascade_config import CascadeTraining
from train.tasks.diffusion_config import DiffusionTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig

Trained = TypeVar("Trained", bound=TrainConfig)


class AnyTrainStageConfig(StageConfig):
    """What any stage `train.<name>` sees of the config; one that runs declares the config of its own task."""

    train: CascadeTraining
    mix: DataMix
    seed: int


def list_trainings(config: RunConfig, task: str, kind: type[StageConfig]) -> dict[str, StageConfig]:
    """Returns a stage's part of the config, a ``kind``, for each training of `train` with this task."""
    trainings = {name: training for name, training in config.train.items() if getattr(training, "task", None) == task}
    mix = mix_data(config)
    return {f"train.{name}": kind.from_run(config, train=training, mix=mix) for name, training in trainings.items()}


def mix_data(config: RunConfig) -> DataMix:
    """Returns the weights of sources and captions, which are beside the sources in the config."""
    return DataMix(sources=config.listing.source_weights() or {}, captions=config.list_captions())


def read_training(manifest: Manifest) -> TrainConfig:
    """Returns the training with which a finished stage ran; UserError where another version wrote it."""
    return AnyTrainStageConfig.from_manifest(manifest).train


def read_stages(trained: Mapping[str, Artifact]) -> dict[str, DiffusionTrainingConfig]:
    """Returns the trainings of those finished stages that generate images, lowest resolution first."""
    trainings = {name: read_training(artifact.manifest) for name, artifact in trained.items()}
    cascade = {name: training for name, training in trainings.items() if isinstance(training, DiffusionTrainingConfig)}
    return dict(sorted(cascade.items(), key=lambda item: item[1].resolution))


def describe_learning(manifest: Manifest) -> Learning:
    """Returns what a finished stage learned from the pairs."""
    train = read_training(manifest)
    return Learning("image and caption", train.steps, train.batch_size, Rows.KEPT)


def place_weights(ctx: Context[Any, Any], config: Trained) -> Trained:
    """Returns a training's config with the weights to begin from, if any, found and recorded."""
    if config.init is None:
        return config
    origin = find_origin(config.init, ctx.stage, f"{ctx.stage}.init")
    write_origin(ctx.path(ORIGIN_FILE), origin)
    return config.model_copy(update={"init": place_init(config.init, origin)})
