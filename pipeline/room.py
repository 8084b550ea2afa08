"""Which stages may run side by side, and how much of the cluster each may hold.

A training group needs all of its ranks at once, a pool of shard workers takes what it can get. So groups come first,
and pools share what is left in equal parts; a pool that holds more lets go as its shards finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.placement import Need

BESIDE = 2  # workers that a pool must have room for, or it waits its turn: on a laptop one stage after another


@dataclass(frozen=True)
class Claim:
    """What a stage holds while it runs: a training group of ``ranks``, or a pool (no ranks) of workers of that need."""

    need: Need = field(default_factory=Need)
    ranks: int | None = None

    def least(self, resource: str) -> float:
        """What it cannot do without."""
        return self.need.as_ray().get(resource, 0.0) * (self.ranks or BESIDE)


class Room:
    """The cluster as it is shared among the stages that run.

    Args:
        capacity: gives how much of a resource ("CPU", "GPU") the cluster has.
    """

    def __init__(self, capacity: Callable[[str], float]) -> None:
        self.capacity = capacity
        self.claims: dict[str, Claim] = {}
        self.lock = threading.Lock()

    def admits(self, claim: Claim) -> bool:
        """Whether a stage with this claim fits beside those that run; one fits an empty cluster, however small."""
        with self.lock:
            return not self.claims or all(
                sum(held.least(resource) for held in self.claims.values()) + claim.least(resource)
                <= self.capacity(resource)
                for resource in ("CPU", "GPU")
            )

    def enter(self, stage: str, claim: Claim) -> None:
        """Notes that ``stage`` runs."""
        with self.lock:
            self.claims[stage] = claim

    def leave(self, stage: str) -> None:
        """Notes that ``stage`` has ended."""
        with self.lock:
            self.claims.pop(stage, None)

    def workers(self, stage: str, need: Need) -> int | None:
        """How many workers of a pool of ``stage`` may run at once; None where it has the cluster for itself."""
        with self.lock:
            others = {name: claim for name, claim in self.claims.items() if name != stage}
            if not others:
                return None
            pools = 1 + sum(claim.ranks is None for claim in others.values())
            shares = []
            for resource, amount in need.as_ray().items():
                if resource in ("CPU", "GPU"):
                    groups = sum(claim.least(resource) for claim in others.values() if claim.ranks is not None)
                    shares.append((self.capacity(resource) - groups) / pools / amount)
        return max(1, int(min(shares, default=1)))
