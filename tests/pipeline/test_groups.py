"""What a training group asks of Ray, and which placement groups are tidied up after it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import placement, ray_train
from pipeline.resources import StageResources


@pytest.mark.parametrize(
    ("nodes", "asked", "resources", "gpu"),
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
def test_ranks_take_what_was_asked_or_an_even_part(
    nodes: list[dict[str, float]], asked: dict[str, Any], resources: dict[str, float], gpu: bool, monkeypatch: Any
) -> None:
    given: dict[str, Any] = {}

    class Trainer:
        def __init__(self, worker: Any, **options: Any) -> None:
            given.update(options)

        def fit(self) -> None:
            pass

    monkeypatch.setattr(placement, "nodes", lambda: nodes)
    monkeypatch.setattr(placement.state, "get_max_resources_from_cluster_config", lambda: None)
    monkeypatch.setattr(ray_train, "_placement_groups", lambda: set())
    monkeypatch.setattr(ray_train, "TorchTrainer", Trainer)
    wanted = StageResources(**asked, placement="SPREAD")
    ray_train._attempt(print, {}, "folder", 2, "train.base", 60, None, wanted)
    scaling = given["scaling_config"]
    assert (scaling.num_workers, scaling.use_gpu, scaling.placement_strategy) == (2, gpu, "SPREAD")
    assert scaling.resources_per_worker == resources
    assert given["train_loop_config"]["threads"] == int(resources["CPU"])
    env = given["run_config"].worker_runtime_env["env_vars"]
    assert env["OMP_NUM_THREADS"] == str(int(resources["CPU"])) and ("DS_ACCELERATOR" in env) is not gpu
    assert env.get("CUDA_VISIBLE_DEVICES") == (None if gpu else "")  # a GPU that was not asked for is not seen


def test_what_groups_leave_behind_is_removed_once_none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    old, one, other = (str(number) * 36 for number in (1, 2, 3))
    there, removed = {old}, list[str]()
    monkeypatch.setattr(ray_train, "_placement_groups", lambda: set(there))
    monkeypatch.setattr(ray_train, "remove_placement_group", lambda group: removed.append(group.id.hex()))
    own = ray_train._OwnPlacementGroups()
    with own:
        there.add(one)
        with own:  # beside the first, in another thread
            there.add(other)
        assert removed == []
    assert sorted(removed) == [one, other]
