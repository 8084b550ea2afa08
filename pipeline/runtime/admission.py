"""Admission control: which stages may run concurrently, and each pool's share of the cluster.

A training group needs all its ranks at once; a pool of shard workers runs with any number. So groups are served first,
then pools on GPUs, which share these, and the other pools share the rest. A pool above its share gives up actors as
their shards finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from pipeline.runtime.resources import WorkerNeed

MIN_POOL_WORKERS = 2  # a pool is admitted only if this many fit; so a laptop runs one stage at a time


@dataclass(frozen=True)
class Reservation:
    """Resources of a running stage: a training group of ``ranks``, or (``ranks=None``) a pool of workers.

    A pool that is ``streamed`` has one worker per CPU at most, however little of it a worker requests.
    """

    need: WorkerNeed = field(default_factory=WorkerNeed)
    ranks: int | None = None
    streamed: bool = False

    def minimum(self, resource: str) -> float:
        """Returns the least amount of ``resource`` that the stage can run with."""
        return self.need.to_ray().get(resource, 0.0) * (self.ranks or MIN_POOL_WORKERS)


class ClusterShares:
    """Divides the cluster among running stages.

    Args:
        get_capacity: returns how much of a resource ("CPU", "GPU") the cluster has.
    """

    def __init__(self, get_capacity: Callable[[str], float]) -> None:
        self.get_capacity = get_capacity
        self.reservations: dict[str, Reservation] = {}
        self.lock = threading.Lock()

    def admits(self, wanted: Reservation) -> bool:
        """Returns whether ``wanted`` fits beside the running stages; an empty cluster, however small, admits any."""
        with self.lock:
            return not self.reservations or all(
                sum(held.minimum(resource) for held in self.reservations.values()) + wanted.minimum(resource)
                <= self.get_capacity(resource)
                for resource in ("CPU", "GPU")
            )

    def admits_one(self, wanted: Reservation) -> bool:
        """Returns whether a worker of ``wanted`` fits beside the groups and one worker of each pool."""
        with self.lock:
            return all(
                sum(held.need.to_ray().get(resource, 0.0) * (held.ranks or 1) for held in self.reservations.values())
                + wanted.need.to_ray().get(resource, 0.0)
                <= self.get_capacity(resource)
                for resource in ("CPU", "GPU")
            )

    def add(self, stage: str, reservation: Reservation) -> None:
        """Records that ``stage`` runs."""
        with self.lock:
            self.reservations[stage] = reservation

    def remove(self, stage: str) -> None:
        """Records that ``stage`` ended."""
        with self.lock:
            self.reservations.pop(stage, None)

    def max_workers(self, stage: str, need: WorkerNeed) -> int | None:
        """Returns how many workers the pool of ``stage`` may run; None (no limit) while no other stage runs."""
        with self.lock:
            own = self.reservations.get(stage)
            limit = max(1.0, self.get_capacity("CPU")) if own is not None and own.streamed else inf
            others = [held for name, held in self.reservations.items() if name != stage]
            if others:
                limit = min(limit, self._share(others, need))
        return None if limit == inf else max(1, int(limit + 1e-9))

    def _share(self, others: Sequence[Reservation], need: WorkerNeed) -> float:
        """Returns how many workers fit into an equal share of what groups, and pools that are served first, leave."""
        groups = [held for held in others if held.ranks is not None]
        pools = [held for held in others if held.ranks is None]
        first = [] if need.gpus else [held for held in pools if held.need.gpus]
        equal = 1 + sum(bool(held.need.gpus) == bool(need.gpus) for held in pools)
        shares = []
        for resource, amount in need.to_ray().items():
            if resource in ("CPU", "GPU"):
                left = self.get_capacity(resource) - sum(held.minimum(resource) for held in groups)
                taken = sum(self._full_use(held, len(first), groups) * held.need.cpus for held in first)
                shares.append((left - taken) / equal / amount)
        return min(shares, default=1.0)

    def _full_use(self, pool: Reservation, pools: int, groups: Sequence[Reservation]) -> int:
        """Returns how many workers of a pool on GPUs run if ``pools`` such pools share the GPUs that groups leave."""
        left = self.get_capacity("GPU") - sum(held.minimum("GPU") for held in groups)
        return max(1, int(left / pools / pool.need.gpus + 1e-9))
