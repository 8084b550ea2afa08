"""Mapping of our config to DeepSpeed's."""

from __future__ import annotations

from typing import Any

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
    assert mapped["bf16"] == {"enabled": True, "check_grad_overflow": True} and mapped["wall_clock_breakdown"] is True
    assert mapped["gradient_clipping"] == 1.0
    assert deepspeed_config(TrainConfig(zero_stage=0), 1, 10)["zero_optimization"] == {"stage": 0}
    assert "bf16" not in deepspeed_config(TrainConfig(zero_stage=0, precision="bf16"), 1, 10)  # autocast


def test_gradients_are_reduced_in_the_backward_pass_and_summed_in_fp32() -> None:
    settings: dict[str, Any] = {"batch_size": 8, "zero_stage": 2, "precision": "bf16"}
    mapped = deepspeed_config(TrainConfig(**settings, accumulation=2), 2, 1000)
    assert mapped["zero_optimization"]["overlap_comm"] and mapped["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in deepspeed_config(TrainConfig(**settings), 2, 1000)  # nothing is summed


def test_our_engine_clips_where_it_can_reach_the_gradients() -> None:
    for stage, offload, ours in ((1, "none", True), (2, "none", True), (2, "optimizer", False), (3, "none", False)):
        config = TrainConfig(zero_stage=stage, offload=offload, grad_clip=0.5, precision="bf16")  # type: ignore[arg-type]
        mapped = deepspeed_config(config, 1, 1000)
        assert mapped["gradient_clipping"] == (0.0 if ours else 0.5)
        assert mapped["zero_optimization"].get("compute_grad_norm", True) is not ours
        assert mapped["bf16"]["check_grad_overflow"] is not ours
