"""Stages `train.<name>` of task `diffusion`: one stage of the cascade each, on packed images and text embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.runtime.context import Context
from pipeline.runtime.training_data import INDEX_FILE, write_shard_index
from pipeline.runtime.training_stage import train_on_cluster
from pipeline.stages.base import Placement, StageConfig, StageInputs, StageType, always
from pipeline.stages.initial_weights import Origin, check_origin, find_origin, list_origin_files
from pipeline.stages.text_encoder import find_text_width
from pipeline.stages.training_stages import describe_learning, list_trainings, place_weights
from pipeline.store.artifact import Artifact
from train.initial_weights.base import read_settings
from train.loader.mix_config import DataMix
from train.tasks.diffusion_config import DiffusionTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class TrainStageConfig(StageConfig):
    """What a stage sees of the config."""

    train: DiffusionTrainingConfig
    mix: DataMix
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrainInputs(StageInputs):
    """Training pixels and text embeddings, row-aligned."""

    pack: Artifact
    embed: Artifact


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns a stage for each entry of `train` with this task."""
    return list_trainings(config, "diffusion", TrainStageConfig)


def list_sources(config: RunConfig, name: str) -> list[str]:
    """Returns the files of the weights that a stage begins from, if any, after checking that they fit its network."""
    stage = config.cascade()[name]
    if stage.init is None:
        return []
    key = f"train.{name}.init"
    origin = find_origin(stage.init, f"train.{name}", key)
    check_weights(stage, origin, find_text_width(config.encoder), key)
    return list_origin_files(origin)


def check_weights(stage: DiffusionTrainingConfig, origin: Origin, text_dim: int | None, key: str) -> None:
    """Raises UserError for weights that do not fit, or that were trained to predict something else.

    Where the width of the text is not known yet, the ranks check shapes.
    """
    assert stage.init is not None
    settings = read_settings(origin.path, "config.json")
    predicts = (settings.get("diffusion") or {}).get("prediction", stage.diffusion.prediction)
    if predicts != stage.diffusion.prediction:
        raise UserError(
            f"{key}={stage.init.source}: predicts {predicts}, diffusion.prediction is {stage.diffusion.prediction}; "
            f"set it to {predicts}"
        )
    layout = stage.denoiser_config(text_dim)
    if text_dim is None or settings.get("model") == layout.model_dump(mode="json"):
        return  # the same config has the same tensors
    import torch

    from train.initial_weights.fitting import list_model_tensors
    from train.models.backbones import build_denoiser

    with torch.device("meta"):
        tensors = list_model_tensors(build_denoiser(layout))
    check_origin(origin, stage.init, tensors, key)


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.diffusion.train_diffusion`."""
    from train.tasks.diffusion import train_diffusion

    return train_diffusion(**arguments)


def run(ctx: Context[TrainStageConfig, TrainInputs]) -> None:
    """Trains the stage: checkpoints, log, and EMA weights to sample from."""
    pack, embed, train = ctx.inputs.pack, ctx.inputs.embed, ctx.config.train
    index, content = ctx.path(INDEX_FILE), pack.content + embed.content
    write_shard_index(ctx, index, pack.files(), embed.files(), train.pixel_columns(), content, train.min_original)
    validate = pack.manifest.counters["validation"] > 0
    arguments: dict[str, Any] = {"index": index, "validate": validate, "mix": ctx.config.mix}
    train_on_cluster(ctx, train_rank, arguments, place_weights(ctx, train), ctx.config.seed)
    storage.remove(index)


STAGE = StageType(
    name="train",
    run=run,
    config=TrainStageConfig,
    inputs=TrainInputs,
    instances=list_instances,
    instance_sources=list_sources,
    placement=always(Placement.GROUP),
    kind="train",
    counter="parameters",
    learned=describe_learning,
)
