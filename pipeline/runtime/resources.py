"""Resources of one worker, and how many workers the cluster holds now and at its maximum size."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state

from pipeline.runtime.config import StageResources

STREAMED_CPUS = 0.33  # three stages stream at most: download, annotate and score, or caption, pack and embed
MAX_RANK_THREADS = 16  # more threads per rank only contend


@dataclass(frozen=True)
class WorkerNeed:
    """Resources that one worker takes from its node."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0  # bytes
    custom: Mapping[str, float] = field(default_factory=dict)

    def to_ray(self) -> dict[str, float]:
        """Returns the amounts by Ray's resource names, without zeros."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory), **self.custom}
        return {name: amount for name, amount in named.items() if amount}

    def actor_options(self) -> dict[str, Any]:
        """Returns the Ray options of an actor with these resources."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            **({"memory": self.memory} if self.memory else {}),
            **({"resources": dict(self.custom)} if self.custom else {}),
        }


def list_node_resources() -> list[dict[str, float]]:
    """Returns the total resources of every live node."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def list_draining_nodes() -> set[str]:
    """Returns the ids of nodes that the cluster is about to take away, such as preempted spot instances."""
    return set(state.get_draining_nodes())


def get_cluster_capacity(resource: str) -> float:
    """Returns how much of ``resource`` the cluster has at its maximum size, nodes not yet started included."""
    limits = state.get_max_resources_from_cluster_config() or {}
    return max(sum(node.get(resource, 0) for node in list_node_resources()), float(limits.get(resource, 0)))


def count_fitting_workers(need: WorkerNeed) -> int:
    """Returns how many workers of this size fit on the current nodes, ignoring what is running."""
    return sum(_count_on_node(node, need) for node in list_node_resources())


def _count_on_node(node: Mapping[str, float], need: WorkerNeed) -> int:
    amounts = need.to_ray()
    if not amounts:
        return sys.maxsize >> 8
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in amounts.items())


def resolve_actor_need(requested: StageResources, with_model: bool, streamed: bool = False) -> WorkerNeed:
    """Returns the resources of an actor; one ``with_model`` gets a GPU if there are any.

    An actor of a stage that is ``streamed``, that is, runs beside the stages that it reads or that read it, counts as
    `STREAMED_CPUS`: each of them may have an actor for each CPU, which waits for the network, for shards, or computes.
    The default is one CPU, with a GPU half of the CPUs that the nodes have per GPU: its threads decode and tokenise for
    the GPU, and the other half is left to stages that run at the same time.
    """
    gpus = requested.num_gpus
    if gpus is None:
        gpus = float(with_model and get_cluster_capacity("GPU") >= 1)
    cpus = requested.num_cpus
    if cpus is None:
        cpus = float(max(1, _cpus_per_gpu_rank(gpus) // 2)) if gpus else STREAMED_CPUS if streamed else 1.0
    return build_need(requested, cpus, gpus)


def share_cpus(ranks: int, gpus: float) -> int:
    """Returns an equal share of the CPUs for each of ``ranks`` ranks that take ``gpus`` GPUs each."""
    return _cpus_per_gpu_rank(gpus) if gpus else _cpus_per_cpu_rank(ranks)


def build_need(requested: StageResources, cpus: float, gpus: float) -> WorkerNeed:
    """Returns the need of a worker with the memory and custom resources that are configured."""
    return WorkerNeed(cpus, gpus, int((requested.memory_gb or 0) * (1 << 30)), requested.resources)


def _cpus_per_gpu_rank(gpus: float) -> int:
    """Returns the CPUs per rank at which every GPU node can use all its GPUs."""
    shares = [node.get("CPU", 0) * gpus / node["GPU"] for node in list_node_resources() if node.get("GPU")]
    return max(1, min(MAX_RANK_THREADS, int(min(shares)))) if shares else 1


def _cpus_per_cpu_rank(ranks: int) -> int:
    """Returns the most CPUs per rank at which all ranks fit on the nodes; 1 if none does."""
    have = [int(node.get("CPU", 0)) for node in list_node_resources()]
    fitting = (
        cpus
        for cpus in range(min(MAX_RANK_THREADS, sum(have) // ranks), 1, -1)
        if sum(of_node // cpus for of_node in have) >= ranks
    )
    return next(fitting, 1)
