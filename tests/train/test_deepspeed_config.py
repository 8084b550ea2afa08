"""Mapping of our config to DeepSpeed's."""

from __future__ import annotations

import pytest

from dataprep.io.errors import UserError
from train.config import TrainConfig
from train.deepspeed_config import deepspeed_config


def test_batch_must_divide_by_ranks() -> None:
    with pytest.raises(UserError, match="multiple of 12"):
        deepspeed_config(TrainConfig(batch_size=32, accumulation=4), 3, 1000)


def test_mapping_and_overrides() -> None:
    config = TrainConfig(
        batch_size=32,
        accumulation=2,
        zero_stage=3,
        offload="all",
        precision="bf16",
        deepspeed={"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True},
    )
    mapped = deepspeed_config(config, 4, 1_000_000)
    assert mapped["train_micro_batch_size_per_gpu"] == 4 and mapped["train_batch_size"] == 32
    zero = mapped["zero_optimization"]
    assert zero["stage"] == 3 and zero["overlap_comm"] and zero["offload_param"] == {"device": "cpu"}
    assert zero["reduce_bucket_size"] == 1_003_520  # no 2 GB buffer for a small model
    assert mapped["bf16"] == {"enabled": True} and mapped["wall_clock_breakdown"] is True
    assert deepspeed_config(TrainConfig(zero_stage=0), 1, 10)["zero_optimization"] == {"stage": 0}
    assert "bf16" not in deepspeed_config(TrainConfig(zero_stage=0, precision="bf16"), 1, 10)  # autocast
