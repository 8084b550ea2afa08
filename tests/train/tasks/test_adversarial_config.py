"""Config of adversarial training: where it may stand, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.vq_config import VqTrainingConfig

SR: dict[str, Any] = {"resolution": 64, "low_resolution": 16, "model": "tiny-sr64"}
SR |= {"diffusion": {"prediction": "x0", "lowres_max_level": 0.3}}
VQ: dict[str, Any] = {"resolution": 64}
ON: dict[str, Any] = {"adversarial": {}}
EPS: dict[str, Any] = {"model_overrides": {"lowres_residual": False}, "diffusion": {"prediction": "eps"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"detail": 7}, "adversarial.detail=7 does not divide 64 pixels; set it to a divisor, or to 0"),
        ({"layers": 7, "detail": 0}, "adversarial.layers=7 leaves nothing of 64 pixels"),
        ({"start": 1000}, "adversarial.start=1000: training ends at 1000 steps"),
        ({"loss": "lsgan"}, "'hinge' or 'logistic'"),
    ],
)
def test_what_does_not_suit_the_training_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VqTrainingConfig(**VQ | {"adversarial": changes})
    with pytest.raises(ValueError, match=words):
        DiffusionTrainingConfig(**SR | {"adversarial": changes})


def test_it_stands_where_an_image_is_predicted() -> None:
    assert VqTrainingConfig(**VQ | ON).adversarial is not None
    assert DiffusionTrainingConfig(**SR | ON).adversarial is not None
    with pytest.raises(ValueError, match=r"adversarial is for super-resolution: .*leave it out"):
        DiffusionTrainingConfig(resolution=16, **ON)
    with pytest.raises(ValueError, match=r"diffusion.prediction=eps gives .*set it to x0 or v"):
        DiffusionTrainingConfig(**SR | EPS | ON)
    with pytest.raises(ValueError, match="no gradient passes chosen codes; give it to the autoencoder's entry"):
        RefinementTrainingConfig(resolution=64, low_resolution=16, autoencoder="vq64", **ON)
