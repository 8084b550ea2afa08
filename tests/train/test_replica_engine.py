"""Ranks that each hold the whole model: gradients are reduced while the backward pass goes on, once per update."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from dataprep.io.storage import read_json, write_json
from train import replica_engine
from train.config import TrainConfig
from train.engine import Engine
from train.replica_engine import ReplicaEngine

LAYERS, WIDTH = 6, 64


class Recorded(TorchDispatchMode):
    """Notes matrix products and reductions in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in ("mm", "allreduce_"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class SmallBuckets(DistributedDataParallel):
    """A bucket per layer or so."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options | {"bucket_cap_mb": WIDTH * WIDTH * 4 / 2**20}))


def run_rank(rank: int, port: int, folder: str) -> None:
    """Notes the backward pass of each micro-batch of the third update, after DDP has ordered its buckets."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    replica_engine.DistributedDataParallel = SmallBuckets  # type: ignore[misc]
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    engine = Engine(model, TrainConfig(batch_size=8, accumulation=2, zero_stage=0))
    torch.manual_seed(rank)
    passes: list[list[str]] = []
    for _ in range(3):
        passes = []
        for _ in range(2):
            loss = engine(torch.randn(2, WIDTH)).square().mean()
            with Recorded() as recorded:
                engine.backward(loss)
            passes.append(recorded.names)
            engine.step(0.01)
    total = torch.stack([param.detach().sum() for param in model.parameters()]).sum()
    sums = [torch.zeros(()) for _ in range(2)]
    dist.all_gather(sums, total)
    if rank == 0:
        assert isinstance(engine.deepspeed, ReplicaEngine)
        write_json(f"{folder}/passes.json", {"passes": passes, "sums": [float(value) for value in sums]})
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("replicas")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, (port, str(folder)), nprocs=2)
    return read_json(str(folder / "passes.json"))


def test_only_the_last_micro_batch_reduces(noted: dict[str, Any]) -> None:
    first, last = noted["passes"]
    assert "allreduce_" not in first and last.count("allreduce_") > 1


def test_reductions_begin_before_the_backward_pass_ends(noted: dict[str, Any]) -> None:
    _, last = noted["passes"]
    after = last[last.index("allreduce_") :]
    assert after.count("mm") >= LAYERS  # of 2 LAYERS - 1: most of the work is still to come


def test_ranks_hold_the_same_weights(noted: dict[str, Any]) -> None:
    one, other = noted["sums"]
    assert one == other


def test_raw_keys_ask_for_deepspeed(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"wall_clock_breakdown": False}
    engine = Engine(nn.Linear(2, 2), TrainConfig(batch_size=2, zero_stage=0, deepspeed=raw))
    assert not isinstance(engine.deepspeed, ReplicaEngine)
