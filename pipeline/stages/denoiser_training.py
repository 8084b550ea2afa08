"""What the stages share that train a denoiser on packed images, their features and text embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.runtime.context import Context
from pipeline.stages.base import StageInputs
from pipeline.stages.clip import find_clip_width
from pipeline.stages.initial_weights import Origin, check_origin, find_origin, list_origin_files
from pipeline.stages.pack_training import train_on_pack
from pipeline.stages.text_encoder import find_text_width
from pipeline.stages.training_stages import place_weights
from pipeline.store.artifact import Artifact
from train.init_config import InitConfig
from train.initial_weights.base import read_settings
from train.tasks.denoising_config import DenoisingStageConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainInputs(StageInputs):
    """Training pixels, with features of the images if they are packed, and text embeddings, row-aligned."""

    pack: Artifact
    embed: Artifact


def list_denoiser_sources(config: RunConfig, name: str) -> list[str]:
    """Returns the files of weights that a stage begins from or is judged by, after checking that they fit."""
    stage = config.denoisers()[name]
    for part, path in stage.local_files().items():
        if not storage.exists(path):
            raise UserError(f"train.{name}.{part}={path}: no such file; give a local weights file (docs/diffusion.md)")
    files = list(stage.local_files().values())
    if stage.init is None:
        return files
    key = f"train.{name}.init"
    origin = find_origin(stage.init, f"train.{name}", key)
    check_weights(stage, origin, stage.init, (find_text_width(config.encoder), find_clip_width(config.clip)), key)
    return files + list_origin_files(origin)


def check_weights(
    stage: DenoisingStageConfig, origin: Origin, init: InitConfig, widths: tuple[int | None, int | None], key: str
) -> None:
    """Raises UserError for weights that do not fit, or that were trained to predict something else.

    ``widths``: of the text encoder's output, and of CLIP's embeddings. Where one that counts is not known yet, the
    ranks check shapes.
    """
    settings = read_settings(origin.path, "config.json")
    predicts = (settings.get("diffusion") or {}).get("prediction", stage.diffusion.prediction)
    if predicts != stage.diffusion.prediction:
        raise UserError(
            f"{key}={init.source}: predicts {predicts}, diffusion.prediction is {stage.diffusion.prediction}; "
            f"set it to {predicts}"
        )
    layout = stage.denoiser_config(*widths)
    counting = widths if stage.vector_columns() else widths[:1]
    if None in counting or settings.get("model") == layout.model_dump(mode="json"):
        return  # the same config has the same tensors
    import torch

    from train.initial_weights.fitting import list_model_tensors
    from train.models.backbones import build_denoiser

    with torch.device("meta"):
        tensors = list_model_tensors(build_denoiser(layout))
    check_origin(origin, init, tensors, key)


def train_denoiser(ctx: Context[Any, TrainInputs], train_rank: Callable[..., dict[str, Any]]) -> None:
    """Trains the stage: checkpoints, log, and EMA weights to sample from; ``train_rank`` does so on each rank."""
    train = place_weights(ctx, ctx.config.train.move_files(storage.absolute))  # ranks have other working directories
    train_on_pack(ctx, train_rank, train, ctx.inputs.pack, ctx.inputs.embed, train.vector_columns())
