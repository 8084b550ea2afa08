"""torch's global settings of a GPU; they can be set and read without one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from dataprep.io.device_settings import configure_device, pick_device, prepare_environment
from dataprep.io.errors import UserError
from train import engine as engine_module
from train.config import RESUMABLE, TrainConfig
from train.engine import Engine

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def read_settings() -> tuple[str, bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return (
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    precision, allow_tf32, benchmark, deterministic, algorithms = read_settings()
    yield
    torch.set_float32_matmul_precision(precision)
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = allow_tf32, benchmark, deterministic
    torch.use_deterministic_algorithms(algorithms)


def test_a_gpu_is_fast_or_repeatable_and_a_cpu_is_left_alone() -> None:
    before = read_settings()
    configure_device(CPU, True)
    assert read_settings() == before
    configure_device(CUDA, True)
    assert read_settings() == ("high", True, False, True, True)
    configure_device(CUDA, False)  # the next stage in the same process
    assert read_settings() == ("high", True, True, False, False)


def test_the_environment_is_set_for_repeatable_results_alone_and_a_given_value_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"NCCL_ALGO": "Tree"})
    prepare_environment(False)
    assert os.environ == {"NCCL_ALGO": "Tree"}
    prepare_environment(True)
    assert os.environ == {"NCCL_ALGO": "Tree", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_engine_asks_for_what_the_config_says_before_ranks_connect(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    connect = engine_module.init_process_group

    def connected(timeout: float) -> tuple[int, int]:
        asked.append(("connect", deterministic))
        return connect(timeout)

    monkeypatch.setattr(engine_module, "prepare_environment", lambda value: asked.append(("environment", value)))
    monkeypatch.setattr(engine_module, "init_process_group", connected)
    monkeypatch.setattr(engine_module, "configure_device", lambda _, value: asked.append(("device", value)))
    Engine(nn.Linear(2, 2), TrainConfig(zero_stage=0, deterministic=deterministic))
    assert asked == [(name, deterministic) for name in ("environment", "connect", "device")]
    assert "deterministic" in RESUMABLE


def test_auto_is_the_gpu_if_there_is_one_and_other_names_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="'cuda': torch finds 0 GPUs; take cpu"):
        pick_device("cuda")
    with pytest.raises(UserError, match="'gpu' is unknown; take auto, cpu, cuda"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == "cuda" and pick_device("cuda:0") == "cuda:0"
    with pytest.raises(UserError, match="'cuda:1': torch finds 1 GPU;"):
        pick_device("cuda:1")


def test_frozen_models_are_as_fast_as_training() -> None:
    configure_device("cuda")
    assert read_settings() == ("high", True, True, False, False)
