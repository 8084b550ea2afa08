"""The processes of a training group: their resources, their places, and what they are told of each other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from pipeline.runtime import rank_group
from pipeline.runtime.config import StageResources
from pipeline.runtime.group_size import plan_group
from pipeline.runtime.rank_group import RankGroup
from pipeline.runtime.resources import WorkerNeed
from pipeline.runtime.warm_processes import ProcessSpec
from train.config import TrainConfig


@pytest.mark.parametrize(
    ("nodes", "requested", "resources", "gpu"),
    [
        ([{"CPU": 2.0}], {}, {"CPU": 1.0}, False),
        ([{"CPU": 96.0, "GPU": 8.0}], {}, {"CPU": 12.0, "GPU": 1.0}, True),
        ([{"CPU": 96.0, "GPU": 8.0}], {"num_gpus": 0, "num_cpus": 4}, {"CPU": 4.0}, False),
        (
            [{"CPU": 8.0}],
            {"resources": {"spot": 0.1}, "memory_gb": 1},
            {"CPU": 4.0, "memory": 2.0**30, "spot": 0.1},
            False,
        ),
    ],
)
def test_ranks_request_what_is_configured_or_an_equal_share(
    nodes: list[dict[str, float]],
    requested: dict[str, Any],
    resources: dict[str, float],
    gpu: bool,
    cluster: Callable[..., None],
) -> None:
    cluster(*nodes)
    plan = plan_group(StageResources(**requested, placement="SPREAD"), 2, TrainConfig(steps=1, batch_size=8))
    assert (plan.ranks, plan.placement) == (2, "SPREAD")
    assert plan.need.to_ray() == resources
    env = ProcessSpec(plan.need, int(plan.need.cpus)).environment()
    assert env["OMP_NUM_THREADS"] == str(int(resources["CPU"])) and ("DS_ACCELERATOR" in env) is not gpu
    assert env.get("CUDA_VISIBLE_DEVICES") == (None if gpu else "")  # GPUs that were not requested are hidden


def make_group(*locations: tuple[str, str, list[str]]) -> RankGroup:
    group = object.__new__(RankGroup)
    group.processes = [f"process {number}" for number in range(len(locations))]
    group.locations = list(locations)
    group.spec, group.placement = ProcessSpec(WorkerNeed(1, 1)), None
    group._order_ranks()
    return group


def test_ranks_are_numbered_by_node_and_see_the_gpus_of_their_node() -> None:
    group = make_group(("b", "10.0.0.2", ["1"]), ("a", "10.0.0.1", ["4"]), ("b", "10.0.0.2", ["0"]))
    assert group.processes == ["process 1", "process 2", "process 0"]
    assert group.nodes() == {"a", "b"}
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "WORLD_SIZE")
    found = [tuple(env[name] for name in names) for env in group._environments(1234)]
    assert found == [
        ("0", "0", "1", "0", "4", "10.0.0.1", "3"),
        ("1", "0", "2", "1", "0,1", "10.0.0.1", "3"),
        ("2", "1", "2", "1", "0,1", "10.0.0.1", "3"),
    ]


def test_cpu_ranks_are_told_of_no_gpus() -> None:
    envs = make_group(("a", "10.0.0.1", []), ("a", "10.0.0.1", []))._environments(1)
    assert [env["LOCAL_RANK"] for env in envs] == ["0", "1"]
    assert not any("CUDA_VISIBLE_DEVICES" in env for env in envs)


def test_a_group_on_a_cluster_is_placed_as_a_whole_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    placement, killed, removed = Mock(), list[Any](), list[Any]()
    placement.wait.side_effect = [False, True]
    asked: dict[str, Any] = {}

    def place(bundles: list[dict[str, float]], strategy: str) -> Any:
        asked.update(bundles=bundles, strategy=strategy)
        return placement

    monkeypatch.setattr(rank_group, "can_grow", lambda: True)
    monkeypatch.setattr(rank_group, "placement_group", place)
    monkeypatch.setattr(rank_group, "remove_placement_group", removed.append)
    monkeypatch.setattr(rank_group, "start_process", lambda spec, options: options["scheduling_strategy"])
    monkeypatch.setattr(rank_group, "WARM", Mock())
    monkeypatch.setattr(rank_group, "PlacementGroupSchedulingStrategy", lambda group, bundle: (group, bundle))
    monkeypatch.setattr(RankGroup, "_await_start", lambda *_: [("node", "address", [])] * 2)
    monkeypatch.setattr(rank_group, "ray", SimpleNamespace(kill=killed.append))
    group = RankGroup(2, ProcessSpec(WorkerNeed(3)), "STRICT_SPREAD", 60)
    assert asked == {"bundles": [{"CPU": 3.0}] * 2, "strategy": "STRICT_SPREAD"}
    assert group.processes == [(placement, 0), (placement, 1)]
    group.end(keep=True)
    assert len(killed) == 2 and removed == [placement]


def test_a_group_that_cannot_be_placed_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    placement, removed = Mock(), list[Any]()
    placement.wait.return_value = False
    monkeypatch.setattr(rank_group, "can_grow", lambda: True)
    monkeypatch.setattr(rank_group, "placement_group", lambda bundles, strategy: placement)
    monkeypatch.setattr(rank_group, "remove_placement_group", removed.append)
    monkeypatch.setattr(rank_group, "WARM", Mock(has=lambda spec, count: False))
    monkeypatch.setattr(rank_group, "ray", SimpleNamespace(available_resources=lambda: {"CPU": 1.0}))
    with pytest.raises(RuntimeError, match=r"did not start within 0 s: each needs 3 CPU, 1 CPU are free"):
        RankGroup(2, ProcessSpec(WorkerNeed(3)), "PACK", 0)
    assert removed == [placement]


@pytest.mark.parametrize(
    ("gpus", "strategy", "idle", "nodes", "taken"),
    [
        (0, "PACK", 2, 1, True),
        (0, "SPREAD", 3, 1, True),
        (0, "PACK", 1, 1, False),  # not all ranks could start
        (0, "PACK", 2, 2, False),  # they might be far from each other
        (0, "STRICT_SPREAD", 2, 1, False),
        (1, "PACK", 2, 1, False),
    ],
)
def test_ranks_on_a_cluster_take_idle_processes_of_its_only_node(
    monkeypatch: pytest.MonkeyPatch, gpus: int, strategy: str, idle: int, nodes: int, taken: bool
) -> None:
    warm, placed = Mock(has=lambda spec, count: idle >= count), Mock()
    monkeypatch.setattr(rank_group, "can_grow", lambda: True)
    monkeypatch.setattr(rank_group, "WARM", warm)
    monkeypatch.setattr(rank_group, "list_node_resources", lambda: [{"CPU": 2.0}] * nodes)
    monkeypatch.setattr(rank_group, "placement_group", placed)
    monkeypatch.setattr(rank_group, "remove_placement_group", Mock())
    monkeypatch.setattr(rank_group, "start_process", Mock())
    monkeypatch.setattr(rank_group, "PlacementGroupSchedulingStrategy", Mock())
    monkeypatch.setattr(rank_group, "ray", Mock())
    monkeypatch.setattr(RankGroup, "_await_start", lambda *_: [("node", "address", [])] * 2)
    group = RankGroup(2, ProcessSpec(WorkerNeed(1, gpus)), strategy, 60)
    assert (warm.acquire.call_count, placed.call_count) == ((2, 0) if taken else (0, 1))
    group.end(keep=True)
    assert warm.keep.call_count == (2 if taken else 0)
