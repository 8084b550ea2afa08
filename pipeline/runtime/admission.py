"""Admission control: which stages may run concurrently, and each pool's share of the cluster.

A training group needs all its ranks at once; a pool of shard workers runs with any number. So groups are served first
and pools share the rest equally. A pool above its share gives up actors as their shards finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.runtime.resources import WorkerNeed

MIN_POOL_WORKERS = 2  # a pool is admitted only if this many fit; so a laptop runs one stage at a time


@dataclass(frozen=True)
class Reservation:
    """Resources of a running stage: a training group of ``ranks``, or (``ranks=None``) a pool of workers."""

    need: WorkerNeed = field(default_factory=WorkerNeed)
    ranks: int | None = None

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
            others = {name: held for name, held in self.reservations.items() if name != stage}
            if not others:
                return None
            pools = 1 + sum(held.ranks is None for held in others.values())
            shares = []
            for resource, amount in need.to_ray().items():
                if resource in ("CPU", "GPU"):
                    groups = sum(held.minimum(resource) for held in others.values() if held.ranks is not None)
                    shares.append((self.get_capacity(resource) - groups) / pools / amount)
        return max(1, int(min(shares, default=1)))
