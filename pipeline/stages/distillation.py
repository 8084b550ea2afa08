"""Stages `train.<name>` of task `distillation`: stages of the cascade that learn a trained one's steps in few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.config import check_same_process
from pipeline.runtime.context import Context
from pipeline.stages.base import Placement, StageConfig, StageType, always
from pipeline.stages.denoiser_training import TrainInputs, check_weights, list_denoiser_sources
from pipeline.stages.initial_weights import ORIGIN_FILE, REFERENCE, find_origin, list_origin_files, write_origin
from pipeline.stages.pack_training import train_on_pack
from pipeline.stages.text_encoder import find_text_width
from pipeline.stages.training_stages import describe_learning, list_trainings, place_weights
from train.init_config import InitConfig
from train.initial_weights.base import read_settings
from train.loader.mix_config import DataMix
from train.tasks.distillation_config import DistillationTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class DistillationStageConfig(StageConfig):
    """What a stage sees of the config."""

    train: DistillationTrainingConfig
    mix: DataMix
    seed: int


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns a stage for each training with this task."""
    return list_trainings(config, "distillation", DistillationStageConfig)


def list_sources(config: RunConfig, name: str) -> list[str]:
    """Returns the files of the teacher, and of other weights that a stage begins from, after checking that they fit."""
    stage, key = config.train[name], f"train.{name}.distillation.teacher"
    assert isinstance(stage, DistillationTrainingConfig)
    teacher = InitConfig(source=stage.distillation.teacher)
    _check_other_artifact(config.run, teacher.source, key)
    origin = find_origin(teacher, f"train.{name}", key)
    settings = read_settings(origin.path, "config.json")
    if "backbone" not in settings:
        raise UserError(f"{key}={teacher.source}: is no exported stage; name a run, RUN:STAGE or an export")
    check_same_process(f"{key}={teacher.source}", stage.diffusion.model_dump(mode="json"), settings["diffusion"])
    if stage.init is None:
        began = stage.model_copy(update={"init": teacher})
        check_weights(began, origin, teacher, (find_text_width(config.encoder), None), key)
    return list_denoiser_sources(config, name) + list_origin_files(origin)


def _check_other_artifact(run: str, teacher: str, key: str) -> None:
    """Raises UserError for the run itself as the teacher: once the student is finished, that would be the student."""
    match = REFERENCE.fullmatch(teacher)
    if match is None or match["fingerprint"]:
        return
    if storage.absolute(match["root"]) == storage.absolute(run):
        raise UserError(
            f"{key}={teacher}: is this run, whose stage the student will be; name the teacher RUN@FINGERPRINT"
        )


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.distillation.train_distillation`."""
    from train.tasks.distillation import train_distillation

    return train_distillation(**arguments)


def run(ctx: Context[DistillationStageConfig, TrainInputs]) -> None:
    """Trains the stage: checkpoints, log, and EMA weights that say how they are sampled."""
    train = _place_teacher(ctx, place_weights(ctx, ctx.config.train.move_files(storage.absolute)))
    train_on_pack(ctx, train_rank, train, ctx.inputs.pack, ctx.inputs.embed)


def _place_teacher(
    ctx: Context[DistillationStageConfig, TrainInputs], train: DistillationTrainingConfig
) -> DistillationTrainingConfig:
    """Returns the config with the teacher's place as the ranks understand it; records it where the student begins."""
    origin = find_origin(InitConfig(source=train.distillation.teacher), ctx.stage, f"{ctx.stage}.distillation.teacher")
    if train.init is None:
        write_origin(ctx.path(ORIGIN_FILE), origin)
    return train.model_copy(update={"distillation": train.distillation.model_copy(update={"teacher": origin.path})})


STAGE = StageType(
    name="train_distillation",
    run=run,
    config=DistillationStageConfig,
    inputs=TrainInputs,
    instances=list_instances,
    instance_sources=list_sources,
    placement=always(Placement.GROUP),
    kind="train",
    counter="parameters",
    learned=describe_learning,
)
