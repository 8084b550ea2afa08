"""The config of training and its mapping to DeepSpeed's."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dataprep.schema import UserError
from train.config import TrainConfig, ds_config
from train.engine import Engine


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10, "accumulation": 4}, "not a multiple of accumulation=4"),
        ({"offload": "optimizer", "zero_stage": 0}, "set zero_stage to 1 or more"),
        ({"offload": "all", "zero_stage": 2}, "set 3"),
        ({"stepz": 3}, "Extra inputs"),
    ],
)
def test_impossible_configs(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**changes)


def test_batch_must_divide_by_ranks() -> None:
    with pytest.raises(UserError, match="multiple of 12"):
        ds_config(TrainConfig(batch_size=32, accumulation=4), 3, 1000)


def test_mapping_and_overrides() -> None:
    config = TrainConfig(
        batch_size=32,
        accumulation=2,
        zero_stage=3,
        offload="all",
        precision="bf16",
        deepspeed={"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True},
    )
    mapped = ds_config(config, 4, 1_000_000)
    assert mapped["train_micro_batch_size_per_gpu"] == 4 and mapped["train_batch_size"] == 32
    zero = mapped["zero_optimization"]
    assert zero["stage"] == 3 and zero["overlap_comm"] and zero["offload_param"] == {"device": "cpu"}
    assert zero["reduce_bucket_size"] == 1_003_520  # no 2 GB buffer for a small model
    assert mapped["bf16"] == {"enabled": True} and mapped["wall_clock_breakdown"] is True
    assert ds_config(TrainConfig(zero_stage=0), 1, 10)["zero_optimization"] == {"stage": 0}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_state_goes_around(stage: int) -> None:
    """A state put into a fresh engine is read back bit by bit, buffers and frozen parameters too."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 7), nn.Linear(7, 3)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    config = TrainConfig(batch_size=2, zero_stage=stage)
    torch.manual_seed(1)
    source = Engine(Net(), config)
    source.module.seen.fill_(5)
    for _ in range(3):
        source.backward(source(torch.randn(2, 4)).square().mean())
        source.step(0.01)
    state, buffers = dict(source.full_state()), source.buffers()
    target = Engine(Net(), config)
    for name, slots in state.items():
        target.load_parameter(name, slots)
    target.set_updates(source.updates())
    target.load_buffers(buffers)
    for name, slots in target.full_state():
        assert all(torch.equal(slots[slot], state[name][slot]) for slot in slots)
    assert target.updates() == 3 and float(target.weights()["seen"]) == 5
    x = torch.randn(2, 4)
    assert torch.equal(source(x), target(x))
