"""Runs a stage's training on a group of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.runtime.context import Context
from train.config import TrainConfig

COUNTERS = ("parameters", "ranks", "step", "skipped", "resumed_from", "passed_over")  # keys of rank 0's result


def train_on_cluster(
    ctx: Context[Any, Any],
    function: Callable[..., dict[str, Any]],
    arguments: Mapping[str, Any],
    config: TrainConfig,
    seed: int,
) -> None:
    """Calls ``function(**arguments, config=, folder=, seed=)`` on every rank; adds rank 0's `COUNTERS` to ``ctx``.

    ``function`` is one of the stage's module and imports the task inside: the driver needs no torch.
    """
    from pipeline.runtime.group_size import plan_group
    from pipeline.runtime.training import run_training

    ctx.connect()
    result = run_training(
        function,
        {**arguments, "config": config, "folder": ctx.folder, "seed": seed},
        ctx.folder,
        plan_group(ctx.cluster.stage_resources(ctx.stage), ctx.cluster.ranks, config),
        config.steps,
        ctx.stage,
        ctx.cluster.retries,
        config.hang_seconds,
        ctx.cluster.regroup_seconds,
    )
    ctx.counters |= {name: int(result[name]) for name in COUNTERS if name in result}
