"""Config of training, its presets, and the settings that identify a run."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from train.config import COMPILE_FROM, PRESETS, RESUMABLE, SHARD_FROM, TrainConfig, run_identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10, "accumulation": 4}, "not a multiple of accumulation=4"),
        ({"offload": "optimizer", "zero_stage": 0}, "set zero_stage to 1 or more"),
        ({"offload": "all", "zero_stage": 2}, "set zero_stage to 3"),
        ({"optimizer": "adafactor", "zero_stage": 2}, "a row and a column of each matrix.*zero_stage=0"),
        (
            {"optimizer": "muon", "zero_stage": 1},
            "updates of whole matrices, which zero_stage=1 flattens.*zero_stage=0",
        ),
        ({"optimizer": "muon", "offload": "all"}, "optimizer=muon runs without ZeRO, which offload=all requires"),
        ({"compile": True, "zero_stage": 3}, "set zero_stage to 2 or less"),
        ({"compile": True, "offload": "all"}, "set zero_stage to 2 or less"),
        ({"optimizer": "adafactor", "offload": "optimizer"}, "without ZeRO, which offload=optimizer requires"),
        ({"preset": "imagen"}, "'imagen' is unknown; take one of imagen-base"),
        ({"stepz": 3}, "Extra inputs"),
    ],
)
def test_invalid_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**changes)


def test_presets_match_the_paper_and_other_keys_override_them() -> None:
    base = TrainConfig(preset="imagen-base")
    assert (base.optimizer, base.learning_rate, base.warmup_steps, base.batch_size) == ("adafactor", 1e-4, 10_000, 2048)
    assert TrainConfig(preset="imagen-sr256", batch_size=64).model_dump() == (
        TrainConfig(**PRESETS["imagen-sr256"]).model_dump() | {"preset": "imagen-sr256", "batch_size": 64}
    )


def test_identity_has_the_settings_that_shape_the_result() -> None:
    class Stage(TrainConfig):
        layers: dict[str, Any] = Field({"channels": {"first": 8}})

    assert set(TrainConfig.model_fields) >= RESUMABLE
    flat = run_identity(Stage())
    assert flat["layers.channels.first"] == 8 and flat["learning_rate"] == 1e-3 and "zero_stage" not in flat


def test_the_identity_has_the_length_of_the_schedule_and_not_of_the_training() -> None:
    assert run_identity(TrainConfig(steps=5)) != run_identity(TrainConfig(steps=6))
    assert run_identity(TrainConfig(steps=5)) == run_identity(TrainConfig(steps=6, decay_steps=5))
    constant = [run_identity(TrainConfig(steps=steps, schedule="constant")) for steps in (5, 6)]
    assert constant[0] == constant[1] and constant[0]["decay_steps"] is None
    with pytest.raises(ValidationError, match="decay_steps=5 is the length of a cosine"):
        TrainConfig(decay_steps=5, schedule="constant")


@pytest.mark.parametrize(
    ("changes", "parameters", "stage"),
    [
        ({}, SHARD_FROM - 1, 0),
        ({}, SHARD_FROM, 2),
        ({"optimizer": "adafactor"}, 2 * SHARD_FROM, 0),
        ({"optimizer": "muon"}, 2 * SHARD_FROM, 0),
        ({"offload": "optimizer"}, 10, 2),
        ({"offload": "all"}, 10, 3),
        ({"zero_stage": 1}, 2 * SHARD_FROM, 1),
    ],
    ids=str,
)
def test_zero_by_the_size_of_the_model(changes: dict[str, Any], parameters: int, stage: int) -> None:
    assert TrainConfig(**changes).resolve(False, parameters).zero_stage == stage


def test_precision_and_compilation_by_the_device() -> None:
    auto = TrainConfig(steps=COMPILE_FROM)
    (gpu, cpu), given = (auto.resolve(on_gpu, 10) for on_gpu in (True, False)), TrainConfig(precision="fp32")
    assert (gpu.precision, gpu.compile) == ("bf16", True) and (cpu.precision, cpu.compile) == ("fp32", False)
    assert given.resolve(True, 10).precision == "fp32" and not given.resolve(True, 10).compile  # too short to pay
    assert TrainConfig(steps=1, compile=True).resolve(False, 10).compile is True
    assert TrainConfig(steps=COMPILE_FROM, zero_stage=3).resolve(True, 10).compile is False
    assert run_identity(gpu) != run_identity(cpu)
