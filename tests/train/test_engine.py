"""The engine: state round trips, and equal results of equivalent settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from dataprep.io.errors import UserError
from tests.helpers.paths import ROOT
from tests.helpers.unets import unet_config
from train.config import TrainConfig
from train.engine import Engine, enable_recompute
from train.models.base import Conditions
from train.models.unet.unet import UNet


class Net(nn.Module):
    """Two layers and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 7), nn.Linear(7, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize(
    "settings",
    [
        *({"zero_stage": stage} for stage in (0, 2, 3)),
        {"zero_stage": 0, "optimizer": "adafactor"},
        {"zero_stage": 1, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "all"},
        {"zero_stage": 3, "precision": "bf16"},
    ],
    ids=str,
)
def test_state_round_trip(settings: dict[str, Any]) -> None:
    """State loaded into a fresh engine reads back bit by bit, buffers too, and the next updates are equal."""
    config = TrainConfig(batch_size=2, **settings)
    torch.manual_seed(1)
    source = Engine(Net(), config)
    source.module.get_buffer("seen").fill_(5)
    for _ in range(3):
        source.backward(source(torch.randn(2, 4)).square().mean())
        source.step(0.01)
    state, buffers = dict(source.full_state()), source.buffers()
    target = Engine(Net(), config)
    for name, slots in state.items():
        target.load_parameter(name, slots)
    target.set_updates(source.updates())
    target.load_buffers(buffers)
    assert target.updates() == 3 and float(target.weights()["seen"]) == 5
    x = torch.randn(2, 4)
    for _ in range(2):
        for name, slots in target.full_state():
            theirs = dict(source.full_state())[name]
            assert all(torch.equal(slots[slot], theirs[slot]) for slot in slots)
        outputs = [engine(x) for engine in (source, target)]
        assert torch.equal(*outputs)
        for engine, output in zip((source, target), outputs, strict=True):
            engine.backward(output.square().mean())
            engine.step(0.01)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_recomputed_blocks_give_the_same_gradients(stage: Literal[0, 2, 3]) -> None:
    """Two updates of a U-Net with dropout, with and without activation checkpointing."""
    weights = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = UNet(unet_config("micro-base", text_dim=8, dropout=0.3))
        engine = Engine(net, TrainConfig(batch_size=2, zero_stage=stage, activation_checkpointing=recompute))
        for update in range(2):
            torch.manual_seed(update)
            x, level = torch.randn(2, 3, 16, 16), torch.zeros(2)
            inputs = x, level, Conditions(torch.randn(2, 4, 8), torch.ones(2, 4).bool())
            engine.backward(engine(*inputs).square().mean() + engine(*inputs).mean())
            engine.step(0.01)
        weights.append(engine.weights("weight"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_compile_asks_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"install g\+\+"):
        Engine(Net(), TrainConfig(batch_size=2, compile=True))


def test_a_model_without_blocks_cannot_recompute() -> None:
    with pytest.raises(UserError, match="activation_checkpointing=true"):
        enable_recompute(nn.Linear(2, 2))


def test_training_needs_no_compiler(tmp_path: Path) -> None:
    """An empty PATH prevents just-in-time builds, a fresh home cached ones."""
    script = "from tests.helpers.toys import run; print(run('out', zero_stage=2)['step'])"
    env = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX", "TORCH_EXTENSIONS_DIR")}
    env |= {"PATH": str(tmp_path / "nothing"), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "20"
    assert (tmp_path / "out/export/weights.safetensors").exists()


@pytest.mark.slow  # the first compilation takes its time
def test_a_compiled_model_trains_the_same() -> None:
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        engine = Engine(Net(), TrainConfig(batch_size=2, zero_stage=2, compile=compiled))
        for update in range(3):
            x = torch.randn(2, 4, generator=torch.Generator().manual_seed(update))
            engine.backward(engine(x).square().mean())
            engine.step(0.01)
        weights.append(engine.weights("weight"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value)


@pytest.mark.parametrize("raw", [{}, {"wall_clock_breakdown": False}], ids=["torch", "deepspeed"])
def test_bf16_without_zero_computes_in_bf16(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed disables autocast that is on for CUDA; make it see the CPU's, or this test could not fail."""
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": asked(kind))
    engine = Engine(Net(), TrainConfig(batch_size=2, zero_stage=0, precision="bf16", deepspeed=raw))
    first, seen = engine.module.get_submodule("first"), list[torch.dtype]()
    first.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    assert engine(torch.randn(2, 4)).dtype == torch.float32
    assert seen == [torch.bfloat16]
    assert next(first.parameters()).dtype == torch.float32
