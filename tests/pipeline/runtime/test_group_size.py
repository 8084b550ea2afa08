"""How many ranks a training gets, on clusters with as many GPUs as it wants, with fewer, and with none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dataprep.io.errors import UserError
from pipeline.runtime import group_size
from pipeline.runtime.config import StageResources
from pipeline.runtime.group_size import GroupPlan, largest_divisor, plan_group
from pipeline.runtime.resources import WorkerNeed
from train.config import TrainConfig

LOOP = TrainConfig(steps=1, batch_size=48, accumulation=2)  # 24 samples for the ranks to divide


@pytest.mark.parametrize(
    ("gpus", "requested", "ranks", "expected"),
    [
        (1, {}, None, (1, 1.0)),  # a workstation: the default config trains on its GPU
        (0, {}, None, (2, 0.0)),
        (4, {}, None, (4, 1.0)),
        (7, {}, None, (6, 1.0)),  # 7 do not divide 24
        (8, {}, 4, (4, 1.0)),
        (1, {"num_gpus": 0.5}, None, (2, 0.5)),
        (8, {"num_gpus": 2}, None, (4, 2.0)),
        (4, {"num_gpus": 0}, 8, (8, 0.0)),  # CPUs because they were asked for
        (4, {"num_gpus": 0}, None, (2, 0.0)),
    ],
)
def test_ranks_default_to_the_gpus(
    gpus: int, requested: dict[str, Any], ranks: int | None, expected: tuple[int, float], cluster: Callable[..., None]
) -> None:
    cluster({"CPU": 32.0, "GPU": float(gpus)})
    plan = plan_group(StageResources(**requested), ranks, LOOP)
    assert (plan.ranks, plan.need.gpus) == expected


def test_ranks_on_cpus_default_to_no_more_than_there_are(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 1.0})
    assert plan_group(StageResources(), None, LOOP).ranks == 1
    cluster({"CPU": 1.0}, limits={"CPU": 8})  # an autoscaler can start them
    assert plan_group(StageResources(), None, LOOP).ranks == 2


@pytest.mark.parametrize(
    ("requested", "ranks", "message"),
    [
        ({}, 8, r"cluster\.ranks=8: each rank takes 1 CPU, .*has 2; set cluster\.ranks=2, or .*num_cpus=0\.25"),
        ({"ranks": 3}, None, r"cluster\.stages\.STAGE\.ranks=3: .*; set cluster\.stages\.STAGE\.ranks=2, or .*=0\.66$"),
        ({"ranks": 1, "num_cpus": 4}, None, r"ranks=1: each rank takes 4 CPU, .*has 2; set a smaller share"),
    ],
)
def test_more_ranks_than_this_machine_has_cpus_for_are_an_error(
    requested: dict[str, Any],
    ranks: int | None,
    message: str,
    cluster: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster({"CPU": 2.0})
    monkeypatch.setattr(group_size, "can_grow", lambda: True)  # an existing cluster, which nodes may join
    assert plan_group(StageResources(**requested), ranks, LOOP)
    monkeypatch.setattr(group_size, "can_grow", lambda: False)
    with pytest.raises(UserError, match=message):
        plan_group(StageResources(**requested), ranks, LOOP)
    assert plan_group(StageResources(num_cpus=0.25), 8, LOOP).ranks == 8


def test_the_number_of_ranks_that_the_error_names_divides_the_batch(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 7.0})
    monkeypatch.setattr(group_size, "can_grow", lambda: False)
    with pytest.raises(UserError, match=r"has 7; set cluster\.ranks=6, or "):
        plan_group(StageResources(), 8, LOOP)


@pytest.mark.parametrize(
    ("gpus", "requested", "ranks", "message"),
    [
        (4, {}, 8, r"cluster\.ranks=8: .*has 4, enough for 4; set cluster\.ranks=4, or add .*train\.num_gpus=0"),
        (7, {}, 8, r"cluster\.ranks=8: .*set cluster\.ranks=6"),
        (0, {"num_gpus": 1}, None, r"cluster\.ranks: .*has 0, enough for 0; add GPUs"),
    ],
)
def test_fewer_gpus_than_ranks_are_an_error_with_both_remedies(
    gpus: int, requested: dict[str, Any], ranks: int | None, message: str, cluster: Callable[..., None]
) -> None:
    cluster({"CPU": 32.0, "GPU": float(gpus)})
    with pytest.raises(UserError, match=message):
        plan_group(StageResources(**requested), ranks, LOOP)


def test_gpus_that_the_autoscaler_can_start_count(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 4.0}, limits={"CPU": 96, "GPU": 8})
    assert plan_group(StageResources(), 8, LOOP).need.gpus == 1


def test_a_smaller_group_divides_the_batch_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_size, "count_fitting_workers", lambda need: 7)
    plan = GroupPlan(8, WorkerNeed(1, 1), 24)
    assert [plan.find_smaller(below) for below in (8, 6, 2, 1)] == [6, 4, 1, 0]


def test_a_group_grows_once_all_missing_ranks_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"CPU": 8.0, "GPU": 2.0}
    monkeypatch.setattr(group_size.ray, "available_resources", lambda: free)
    plan = GroupPlan(8, WorkerNeed(2, 1), 24)
    assert plan.has_room_to_grow(6) and not plan.has_room_to_grow(4)
    assert not GroupPlan(8, WorkerNeed(5, 1), 24).has_room_to_grow(6)


@pytest.mark.parametrize(("number", "limit", "divisor"), [(24, 7, 6), (24, 100, 24), (7, 6, 1), (8, 0, 0), (8, -1, 0)])
def test_largest_divisor(number: int, limit: int, divisor: int) -> None:
    assert largest_divisor(number, limit) == divisor
