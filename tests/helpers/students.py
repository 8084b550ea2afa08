"""A tiny teacher and the training of its student; importable in spawned ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.cascades import trained
from tests.helpers.unets import unet_config
from train.config import TrainConfig
from train.diffusion.config import DiffusionConfig
from train.loader.loader import Loader
from train.loop import train
from train.models.export import save_stage
from train.tasks.distillation import DistillationTask
from train.tasks.distillation_config import DistillationTrainingConfig

BASE: dict[str, Any] = {"resolution": 16, "model": "micro-base"}
SR: dict[str, Any] = {
    "resolution": 64,
    "low_resolution": 16,
    "crop": 32,
    "model": "micro-sr",
    "diffusion": {"prediction": "x0", "lowres_max_level": 0.3},
}
Pack = tuple[str, str]  # shards of images and of embeddings 8 wide


def export_teacher(folder: Path, stage: dict[str, Any]) -> str:
    """Writes a teacher, whose weights are random but not zero, for a stage; returns its folder."""
    network = unet_config(stage["model"], text_dim=8)
    diffusion = DiffusionConfig(**stage.get("diffusion", {})).model_dump(mode="json")
    save_stage(folder / "teacher", trained(network), network, diffusion, trained_steps=5)
    return str(folder / "teacher")


def make_task(teacher: str, stage: dict[str, Any], **settings: Any) -> DistillationTask:
    """Returns the task of a student of ``teacher``."""
    distillation = {"teacher": teacher, **settings}
    config = DistillationTrainingConfig(**(stage | {"distillation": distillation}))
    return DistillationTask(teacher, config, text_dim=8)


def make_loader(task: DistillationTask, pack: Pack, split: str = "train") -> Loader:
    """Returns batches of 8."""
    return Loader([pack[0]], [pack[1]], task.columns, split, 0, 8, task.config.crop)


def train_student(
    task: DistillationTask,
    folder: Path | str,
    pack: Pack,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    **changes: Any,
) -> None:
    """Trains the student for 12 updates."""
    settings: dict[str, Any] = {"steps": 12, "batch_size": 8, "checkpoint_every": 5, "log_every": 1, "warmup_steps": 2}
    settings |= {"init": task.teacher_folder, "learning_rate": 3e-3, "ema_decay": 0.8}
    loaders = [make_loader(task, pack, split) for split in ("train", "validation")]
    train(task, TrainConfig(**(settings | changes)), loaders[0], str(folder), 0, loaders[1], on_event)


def train_on_two_ranks(rank: int, port: int, folder: str, teacher: str, pack: Pack) -> None:
    """Trains a student on this rank of two without ZeRO, and with parameters sharded."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for zero_stage in (0, 3):
        train_student(make_task(teacher, BASE, steps=2), f"{folder}/zero{zero_stage}", pack, zero_stage=zero_stage)
    dist.destroy_process_group()
