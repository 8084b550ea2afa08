"""Layouts of the prior that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from train.models.prior.config import PriorConfig


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 100, "head_width": 64}, "width 100 does not split into heads of 64"),
        ({"lowres": True}, "a prior has no image as input"),
        ({"image_embedding_dim": 4}, "a prior has no image as input"),
        ({"learned_variance": True}, "a prior predicts the embedding alone"),
    ],
)
def test_impossible_layouts_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PriorConfig(**keys)


def test_what_the_cascade_asks_of_a_layout() -> None:
    config = PriorConfig(image_channels=12)
    assert config.vector_widths() == {"pooled_text_BE": 12} and config.size_multiple() == 1
    assert config.fixed_diffusion() == {"prediction": "x0"} and config.needs_whole_images() is None
