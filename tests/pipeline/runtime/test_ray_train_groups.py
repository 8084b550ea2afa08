"""The resources that a training group requests from Ray, and the removal of leftover placement groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.runtime import ray_train
from pipeline.runtime.config import StageResources


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    class Trainer:
        def __init__(self, worker: Any, **options: Any) -> None:
            given.update(options)

        def fit(self) -> None:
            pass

    cluster(*nodes)
    monkeypatch.setattr(ray_train, "_list_placement_groups", lambda: set())
    monkeypatch.setattr(ray_train, "TorchTrainer", Trainer)
    config = StageResources(**requested, placement="SPREAD")
    ray_train._run_group(dict, {}, "folder", 2, "train.base", 60, None, config)
    scaling = given["scaling_config"]
    assert (scaling.num_workers, scaling.use_gpu, scaling.placement_strategy) == (2, gpu, "SPREAD")
    assert scaling.resources_per_worker == resources
    assert given["train_loop_config"]["threads"] == int(resources["CPU"])
    env = given["run_config"].worker_runtime_env["env_vars"]
    assert env["OMP_NUM_THREADS"] == str(int(resources["CPU"])) and ("DS_ACCELERATOR" in env) is not gpu
    assert env.get("CUDA_VISIBLE_DEVICES") == (None if gpu else "")  # GPUs that were not requested are hidden


def test_leftover_placement_groups_are_removed_once_no_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    old, one, other = (str(number) * 36 for number in (1, 2, 3))
    existing, removed = {old}, list[str]()
    monkeypatch.setattr(ray_train, "_list_placement_groups", lambda: set(existing))
    monkeypatch.setattr(ray_train, "remove_placement_group", lambda group: removed.append(group.id.hex()))
    cleanup = ray_train._OwnPlacementGroups()
    with cleanup:
        existing.add(one)
        with cleanup:  # a concurrent training, in another thread
            existing.add(other)
        assert removed == []
    assert sorted(removed) == [one, other]
