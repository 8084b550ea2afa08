"""Training in Ray Train workers: results, restarts from a checkpoint after a death, failures told as what they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from dataprep import storage
from dataprep.schema import UserError
from pipeline.ray_train import last_row, run_training

pytestmark = pytest.mark.usefixtures("local_ray")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def work(folder: str, mode: str) -> dict[str, Any]:
    """A stand-in for the training loop: sums ranks over the process group, or fails as ``mode`` says."""
    import torch
    import torch.distributed as dist

    once = Path(folder) / "died"
    if mode == "user":
        raise UserError("train.base.crop=3: take another")
    if mode == "bug":
        raise KeyError("missing")
    if mode == "dies" and dist.get_rank() == 1 and not once.exists():
        once.write_text("")
        os._exit(1)
    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    return {"total": total.item(), "world": dist.get_world_size(), "threads": torch.get_num_threads()}


def train(tmp_path: Path, mode: str, retries: int = 1) -> dict[str, Any]:
    arguments = {"folder": str(tmp_path), "mode": mode}
    return run_training(work, arguments, str(tmp_path), 2, 10, "work", retries)


def test_two_ranks_in_one_group(tmp_path: Path) -> None:
    assert train(tmp_path, "fine") == {"total": 3.0, "world": 2, "threads": 1}


@pytest.mark.slow  # Ray takes its time, and once in a while did not start the group again within minutes
def test_a_rank_that_dies_is_started_again(tmp_path: Path) -> None:
    result = train(tmp_path, "dies")
    assert (tmp_path / "died").exists()
    assert result == {"total": 3.0, "world": 2, "threads": 1}


def test_a_users_mistake_and_a_bug_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.base\.crop=3"):
        train(tmp_path, "user", retries=0)
    with pytest.raises(RuntimeError, match=r"rank [01]: KeyError"):
        train(tmp_path, "bug", retries=0)


def test_the_last_whole_row_of_a_log(tmp_path: Path) -> None:
    path = str(tmp_path / "log.jsonl")
    assert last_row(path) is None
    storage.write_bytes(path, b'{"step": 1}\n{"step": 2}\n{"st')
    assert last_row(path) == {"step": 2}
