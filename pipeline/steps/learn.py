"""Stages that train: the same loop for every task, in Ray Train workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow.parquet as pq

from dataprep import storage
from dataprep.schema import UserError
from pipeline.config import CascadeStageConfig
from pipeline.context import Context
from pipeline.ray_train import run_training
from train.config import TrainConfig
from train.data import TRAIN, Loader
from train.loop import train as train_loop
from train.tasks.diffusion import DiffusionTask, stage_columns

VALIDATION = "validation"


def fit(ctx: Context, function: Callable[..., dict[str, Any]], arguments: dict[str, Any], config: TrainConfig) -> None:
    """Calls ``function(**arguments, config, folder, seed)`` on every rank, and notes rank 0's figures."""
    arguments = arguments | {"config": config, "folder": ctx.folder, "seed": ctx.config["seed"]}
    ctx.connect()
    ranks, asked = ctx.cluster.ranks, ctx.cluster.of(ctx.stage)
    retries, hang = ctx.cluster.retries, config.hang_seconds
    result = run_training(function, arguments, ctx.folder, ranks, config.steps, ctx.stage, retries, hang, asked)
    noted = ("parameters", "step", "skipped", "resumed_from", "passed_over")
    ctx.counters |= {name: int(result[name]) for name in noted if name in result}


def train(ctx: Context) -> None:
    """One cascade stage on pack and embeddings: checkpoints, log, and EMA weights to sample from."""
    pack, embed = ctx.inputs["pack"], ctx.inputs["embed"]
    arguments = {"pack": pack.files(), "embed": embed.files(), "validate": pack.manifest.counters["validation"] > 0}
    fit(ctx, fit_diffusion, arguments, ctx.config[ctx.stage])


def text_width(embed: Sequence[str]) -> int:
    """Components of a token, as the first shard that has a caption says; a shard of which nothing was kept has none."""
    for path in embed:
        with storage.local_copy(path) as local, pq.ParquetFile(local) as file:
            if file.metadata.num_rows:
                return int(next(file.iter_batches(1, columns=["dim"]))["dim"][0].as_py())
    raise UserError("train: nothing was kept to train on; look at the report's funnel and loosen select")


def fit_diffusion(
    pack: Sequence[str], embed: Sequence[str], validate: bool, config: CascadeStageConfig, folder: str, seed: int
) -> dict[str, Any]:
    """Trains a diffusion stage on this rank."""

    def loader(split: str) -> Loader:
        columns, size = stage_columns(config), config.batch_size
        least = config.min_original if split == TRAIN else 0  # few are held out, of whatever size
        return Loader(pack, embed, columns, split, seed, size, config.crop, config.data, least)

    task, data = DiffusionTask(config, text_width(embed)), loader(TRAIN)
    result = train_loop(task, config, data, folder, seed, loader(VALIDATION) if validate else None)
    return result | {"passed_over": len(data.corrupt)}
