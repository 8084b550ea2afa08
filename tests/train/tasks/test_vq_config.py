"""Config of the task `vq`: what does not fit is refused by name, with the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from train.tasks.vq_config import VqTrainingConfig


def test_it_says_what_it_reads() -> None:
    config = VqTrainingConfig(resolution=64)
    assert config.pixel_columns() == ("pixels_64",) and config.stored_sizes() == (64,) and config.size_multiple() == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": 128}, "crop=128 is larger than resolution=64"),
        ({"crop": 30}, "a code for 4x4 pixels, which 30 is no multiple of"),
        ({"adapter": {}, "init": "runs/one"}, "leave adapter out"),
        ({"activation_checkpointing": True}, "activation_checkpointing=true: .* set it to false"),
        ({"revive_below": 1.0}, "less than 1"),
        ({"model": "vq-tny"}, "'vq-tny' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=words):
        VqTrainingConfig(**{"resolution": 64, **changes})
