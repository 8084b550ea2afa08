"""How many ranks a training group has and what each needs: never CPUs in place of GPUs, unless that is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray

from dataprep.io.errors import UserError
from pipeline.runtime.config import StageResources
from pipeline.runtime.ray_session import can_grow
from pipeline.runtime.resources import (
    WorkerNeed,
    build_need,
    count_fitting_workers,
    get_cluster_capacity,
    share_cpus,
)
from train.config import TrainConfig

CPU_RANKS = 2  # default on a cluster without GPUs, if it has as many CPUs


@dataclass(frozen=True)
class GroupPlan:
    """The group that a training wants."""

    ranks: int
    need: WorkerNeed  # of each rank
    samples: int  # of a micro-batch over all ranks: what the ranks divide evenly
    placement: str = "PACK"  # Ray's placement strategy

    def find_smaller(self, below: int) -> int:
        """Returns the most ranks below ``below`` that fit on the nodes and divide the batch; 0 if none does."""
        return largest_divisor(self.samples, min(below - 1, count_fitting_workers(self.need)))

    def has_room_to_grow(self, ranks: int) -> bool:
        """Returns whether a group of ``ranks`` could have all its ranks now, beside what else is running."""
        free = ray.available_resources()
        return all(
            free.get(name, 0) >= amount * (self.ranks - ranks) - 1e-6 for name, amount in self.need.to_ray().items()
        )


def plan_group(requested: StageResources, ranks: int | None, loop: TrainConfig) -> GroupPlan:
    """Returns the group of a training.

    Args:
        requested: the resources of a rank, as configured; its ``ranks``, if given, go first.
        ranks: `cluster.ranks`; None for as many as there are GPUs, or without any CPUs up to `CPU_RANKS`, and divide
            the batch.
        loop: the training, for its batch.

    Raises:
        UserError: the cluster has fewer GPUs than ``ranks`` need, counting what its autoscaler can start, or this
            machine alone fewer CPUs.
    """
    key, ranks = ("cluster.stages.STAGE.ranks" if requested.ranks else "cluster.ranks"), requested.ranks or ranks
    total, samples = get_cluster_capacity("GPU"), loop.batch_size // loop.accumulation
    gpus = requested.num_gpus if requested.num_gpus is not None else float(total >= 1)
    default = min(CPU_RANKS, max(1, int(get_cluster_capacity("CPU"))))
    most = int(total / gpus + 1e-9) if gpus else ranks or default
    best = largest_divisor(samples, most)
    if best == 0 or (ranks or 0) > most:
        wanted = f"{key}={ranks}" if ranks else key
        lower = f"set {key}={best}, or add GPUs" if best else "add GPUs"
        raise UserError(
            f"{wanted}: each rank takes {gpus:g} GPU, and the cluster has {total:g}, enough for {most}; {lower}. "
            "To train on CPUs, set cluster.stages.train.num_gpus=0"
        )
    size = ranks or best
    cpus = requested.num_cpus if requested.num_cpus is not None else share_cpus(size, gpus)
    _check_cpus(key, size, float(cpus), samples)
    return GroupPlan(size, build_need(requested, float(cpus), gpus), samples, requested.placement)


def _check_cpus(key: str, ranks: int, cpus: float, samples: int) -> None:
    """Raises UserError for ranks that a local Ray never has the CPUs for."""
    have = get_cluster_capacity("CPU")
    if can_grow() or ranks * cpus <= have + 1e-6:
        return
    fit = largest_divisor(samples, int(have / cpus + 1e-6))
    fewer = f"set {key}={fit}, or a" if fit else "set a"
    raise UserError(
        f"{key}={ranks}: each rank takes {cpus:g} CPU, and this machine has {have:g}; {fewer} smaller share each: "
        f"cluster.stages.STAGE.num_cpus={math.floor(100 * have / ranks) / 100:g}"
    )


def largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of ``number`` that is at most ``limit``; 0 for a limit below 1."""
    return next((divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0), 0)
