"""Configs of a prior that are refused, and what is filled in."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from train.tasks.prior_config import PriorTrainingConfig


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "tiny-base"}, "model=tiny-base is trained by task: diffusion; set it, or take another model"),
        ({"diffusion": {"prediction": "v"}}, "diffusion.prediction=v: model=prior-tiny has learned x0; set it to that"),
        ({"diffusion": {"variance_weight": 0.1}}, "weight=0.1: model=prior-tiny predicts no variance"),
        ({"sample_every": 5}, "sample_every=5: a prior makes no images to show; set it to 0"),
        ({"resolution": 64}, "resolution\n  Extra inputs are not permitted"),
    ],
)
def test_what_a_prior_cannot_do_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PriorTrainingConfig(**keys)


def test_widths_and_prediction_are_filled_in() -> None:
    config = PriorTrainingConfig.model_validate({"diffusion": {"log_snr_shift": -1.0}})
    assert (config.diffusion.prediction, config.diffusion.log_snr_shift) == ("x0", -1.0)
    layout = config.denoiser_config(24, 48)
    assert (layout.text_dim, layout.image_channels) == (24, 48)
    assert config.denoiser_config().image_channels == 64 and not config.pixel_columns()
    assert config.vector_columns() == ("clip_embedding", "clip_text_embedding")
    assert PriorTrainingConfig.model_validate(config.model_dump(mode="json")) == config
