"""Resources of actors and ranks, and how many fit on a cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.runtime.config import StageResources
from pipeline.runtime.resources import STREAMED_CPUS, WorkerNeed, count_fitting_workers, resolve_actor_need, share_cpus

CPU_NODE, GPU_NODE = {"CPU": 32.0, "memory": 128e9}, {"CPU": 96.0, "GPU": 8.0, "memory": 1e12}


def test_models_get_a_gpu_if_the_cluster_has_or_can_start_one(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 2.0})
    assert resolve_actor_need(StageResources(), True) == WorkerNeed(1.0, 0.0)
    cluster(CPU_NODE, GPU_NODE)
    assert resolve_actor_need(StageResources(), True) == WorkerNeed(6.0, 1.0)  # half of 96 / 8
    assert resolve_actor_need(StageResources(num_gpus=0.5), True) == WorkerNeed(3.0, 0.5)
    assert resolve_actor_need(StageResources(num_cpus=1), True) == WorkerNeed(1.0, 1.0)
    assert resolve_actor_need(StageResources(), False) == WorkerNeed(1.0, 0.0)
    assert resolve_actor_need(StageResources(), False, streamed=True) == WorkerNeed(STREAMED_CPUS, 0.0)
    assert resolve_actor_need(StageResources(), True, streamed=True) == WorkerNeed(6.0, 1.0)
    assert resolve_actor_need(StageResources(num_cpus=1), False, streamed=True) == WorkerNeed(1.0, 0.0)
    requested = StageResources(num_gpus=0.25, num_cpus=3, memory_gb=2)
    assert resolve_actor_need(requested, True) == WorkerNeed(3, 0.25, 2 << 30)
    cluster({"CPU": 0.0}, limits={"CPU": 96, "GPU": 8})  # a head node only; the autoscaler can start GPU nodes
    assert resolve_actor_need(StageResources(), True).gpus == 1


@pytest.mark.parametrize(
    ("nodes", "ranks", "cpus", "gpus"),
    [
        ([{"CPU": 2.0}], 2, 1, 0),
        ([{"CPU": 8.0}], 2, 4, 0),
        ([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], 2, 1, 0),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 3, 1, 0),  # with 2 CPUs per rank the third would not fit
        ([CPU_NODE, GPU_NODE], 8, 12, 1),  # the last GPU of the node still gets its CPUs
        ([CPU_NODE, GPU_NODE], 16, 8, 0),
    ],
)
def test_ranks_share_the_cpus_equally(
    nodes: list[dict[str, float]], ranks: int, cpus: int, gpus: int, cluster: Callable[..., None]
) -> None:
    cluster(*nodes)
    assert share_cpus(ranks, gpus) == cpus
    assert count_fitting_workers(WorkerNeed(cpus, gpus)) >= ranks


def test_fitting_workers_are_counted_per_node(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 1.0, "spot": 1.0})
    assert count_fitting_workers(WorkerNeed(2)) == 2
    assert count_fitting_workers(WorkerNeed(1, 0.5)) == 2
    assert count_fitting_workers(WorkerNeed(1, custom={"spot": 0.01})) == 1
    assert count_fitting_workers(WorkerNeed(0.1)) == 70


def test_actor_options_leave_out_what_is_not_needed() -> None:
    assert WorkerNeed(0.5).actor_options() == {"num_cpus": 0.5, "num_gpus": 0.0}
    assert WorkerNeed(0.5, 0.0, 1 << 30, {"spot": 1}).actor_options() == {
        "num_cpus": 0.5,
        "num_gpus": 0.0,
        "memory": 1 << 30,
        "resources": {"spot": 1},
    }
