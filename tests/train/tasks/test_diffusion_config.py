"""Validation of stage configs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from train.tasks.diffusion_config import DiffusionStageConfig

X0 = {"prediction": "x0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 15, "model": "micro-base"}, "multiples of"),
        ({"resolution": 16, "model": "micro-sr"}, "not a base model"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-base"}, "not a super-resolution model"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-sr", "crop": 128}, "larger than resolution"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-sr"}, "prediction to x0"),
        ({"resolution": 64, "low_resolution": 24, "model": "micro-sr", "diffusion": X0}, "does not divide"),
        ({"resolution": 16, "model": "nano"}, "preset 'nano' is unknown"),
    ],
)
def test_invalid_stages_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionStageConfig(**changes)
