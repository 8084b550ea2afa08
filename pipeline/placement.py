"""What a worker needs, in numbers, and how many of them the cluster has room for: now, and once it has grown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state

from pipeline.resources import StageResources

MOST_THREADS = 16  # of a rank: more than these wait for one another


@dataclass(frozen=True)
class Need:
    """What one worker takes of its node."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0  # bytes
    custom: Mapping[str, float] = field(default_factory=dict)

    def as_ray(self) -> dict[str, float]:
        """By Ray's names, those of nothing left out."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory), **self.custom}
        return {name: amount for name, amount in named.items() if amount}

    def options(self) -> dict[str, Any]:
        """The options of an actor that takes it."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            **({"memory": self.memory} if self.memory else {}),
            **({"resources": dict(self.custom)} if self.custom else {}),
        }


def nodes() -> list[dict[str, float]]:
    """The resources of every node that lives."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def possible(resource: str) -> float:
    """How much of ``resource`` the cluster has, or would have were every node there that its autoscaler may start."""
    limits = state.get_max_resources_from_cluster_config() or {}
    return max(sum(node.get(resource, 0) for node in nodes()), float(limits.get(resource, 0)))


def room_for(need: Need) -> int:
    """How many workers that need this the nodes hold which are there, were they idle."""
    return sum(_holds(node, need) for node in nodes())


def _holds(node: Mapping[str, float], need: Need) -> int:
    wanted = need.as_ray()
    if not wanted:
        return sys.maxsize >> 8
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items())


def actor_need(asked: StageResources, with_model: bool) -> Need:
    """What an actor takes; one ``with_model`` has a GPU to itself where there are any, and a CPU that feeds it."""
    gpus = asked.num_gpus if asked.num_gpus is not None else float(with_model and possible("GPU") >= 1)
    return _need(asked, 1.0 if asked.num_cpus is None else asked.num_cpus, gpus)


def rank_need(asked: StageResources, ranks: int) -> Need:
    """What each of ``ranks`` ranks takes: a GPU where there are as many, and an even part of the CPUs beside it."""
    gpus = asked.num_gpus if asked.num_gpus is not None else float(possible("GPU") >= ranks)
    cpus = asked.num_cpus
    if cpus is None:
        cpus = _beside_gpus(gpus) if gpus else _even_part(ranks)
    return _need(asked, float(cpus), gpus)


def _need(asked: StageResources, cpus: float, gpus: float) -> Need:
    return Need(cpus, gpus, int((asked.memory_gb or 0) * (1 << 30)), asked.resources)


def _beside_gpus(gpus: float) -> int:
    """CPUs that every GPU node has for a rank, so that its last GPU is not left without one."""
    shares = [node.get("CPU", 0) * gpus / node["GPU"] for node in nodes() if node.get("GPU")]
    return max(1, min(MOST_THREADS, int(min(shares)))) if shares else 1


def _even_part(ranks: int) -> int:
    """The most CPUs a rank at which all ranks still find a place on the nodes; 1 where they do not anyway."""
    have = [int(node.get("CPU", 0)) for node in nodes()]
    fitting = (
        cpus
        for cpus in range(min(MOST_THREADS, sum(have) // ranks), 1, -1)
        if sum(of_node // cpus for of_node in have) >= ranks
    )
    return next(fitting, 1)
