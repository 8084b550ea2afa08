"""The config of training, its presets, and its mapping to DeepSpeed's."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from dataprep.schema import UserError
from train.config import PRESETS, RESUMABLE, TrainConfig, ds_config, identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10, "accumulation": 4}, "not a multiple of accumulation=4"),
        ({"offload": "optimizer", "zero_stage": 0}, "set zero_stage to 1 or more"),
        ({"offload": "all", "zero_stage": 2}, "set 3"),
        ({"optimizer": "adafactor", "zero_stage": 2}, "a row and a column of each matrix.*zero_stage=0"),
        ({"compile": True, "zero_stage": 3}, "set 2 or less"),
        ({"preset": "imagen"}, "'imagen' is unknown; take one of imagen-base"),
        ({"stepz": 3}, "Extra inputs"),
    ],
)
def test_impossible_configs(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**changes)


def test_presets_are_the_papers_and_other_keys_replace_them() -> None:
    base = TrainConfig(preset="imagen-base")
    assert (base.optimizer, base.learning_rate, base.warmup_steps, base.batch_size) == ("adafactor", 1e-4, 10_000, 2048)
    assert TrainConfig(preset="imagen-sr256", batch_size=64).model_dump() == (
        TrainConfig(**PRESETS["imagen-sr256"]).model_dump() | {"preset": "imagen-sr256", "batch_size": 64}
    )


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
    assert "bf16" not in ds_config(TrainConfig(zero_stage=0, precision="bf16"), 1, 10)  # autocast


def test_identity_is_what_shapes_the_result() -> None:
    class Stage(TrainConfig):
        unet: dict[str, Any] = Field({"channels": {"first": 8}})

    assert set(TrainConfig.model_fields) >= RESUMABLE
    flat = identity(Stage())
    assert flat["unet.channels.first"] == 8 and flat["learning_rate"] == 1e-3 and "zero_stage" not in flat
