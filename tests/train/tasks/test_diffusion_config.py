"""Validation of stage configs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from train.tasks.diffusion_config import DiffusionStageConfig

VGG: dict[str, Any] = {"weights": "vgg16.pth"}
MICRO: dict[str, Any] = {"resolution": 16, "model": "micro-base"}
VARIANCE = {"learned_variance": True}
X0 = {"prediction": "x0", "lowres_max_level": 0.3}
SR = {"resolution": 64, "low_resolution": 16, "model": "micro-sr", "diffusion": X0}
CROPPED = {"resolution": 256, "low_resolution": 64, "crop": 128, "diffusion": X0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 15, "model": "micro-base"}, "multiples of"),
        ({"resolution": 16, "model": "micro-sr"}, "not a base model"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-base"}, "not a super-resolution model"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-sr", "crop": 128}, "larger than resolution"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-sr"}, "prediction to x0"),
        ({"resolution": 64, "low_resolution": 24, "model": "micro-sr", "diffusion": X0}, "does not divide"),
        (SR | {"diffusion": {"prediction": "x0"}}, r"lowres_max_level=1.0: model=micro-sr adds .*set it to 0\.3"),
        (SR | {"diffusion": X0 | {"lowres_max_level": 0.51}}, r"lowres_max_level=0\.51"),
        (CROPPED | {"model": "small-sr256"}, "crop=128: model=small-sr256 has attention 'joint'.*leave crop out"),
        ({"resolution": 64, "crop": 32, "model": "small-base"}, "crop=32: model=small-base has attention 'joint'"),
        ({"resolution": 16, "crop": 8, "model": "micro-base"}, "crop=8: model=micro-base has positions=true"),
        (SR | {"crop": 32, "model_overrides": {"attention": ["self", "cross"]}}, "has attention 'self'"),
        (SR | {"crop": 32, "model_overrides": {"attention": ["none", "none"], "middle": True}}, "attention 'joint'"),
        ({"resolution": 16, "model": "nano"}, "preset 'nano' is unknown"),
        (
            MICRO | {"diffusion": {"variance_weight": 0.1}},
            r"weight=0\.1: model=micro-base predicts no variance",
        ),
        (MICRO | {"perceptual": VGG, "diffusion": {"weighting": "elbo"}}, "perceptual: weighting=elbo is a bound"),
        (MICRO | {"perceptual": VGG, "resolution": 8}, "8 pixels are too few"),
        (SR | {"perceptual": VGG, "crop": 12}, "12 pixels are too few"),
        (MICRO | {"perceptual": VGG, "half_size_steps": 5}, "8 pixels are too few"),
        (MICRO | {"model_overrides": VARIANCE}, "nothing trains the variance of model=micro-base; set diffusion"),
    ],
)
def test_invalid_stages_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionStageConfig(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        SR | {"crop": 32},
        SR | {"crop": 64, "model_overrides": {"attention": ["self", "cross"]}},  # as large as the image
        SR | {"diffusion": X0 | {"lowres_max_level": 0.5}},
        SR | {"diffusion": {}, "model_overrides": {"lowres_residual": False}},
        CROPPED | {"model": "small-sr256", "model_overrides": {"attention": ["none", "none", "none", "cross"]}},
        CROPPED | {"model": "small-sr1024"},
        MICRO | {"perceptual": VGG},
        MICRO | {"model_overrides": VARIANCE, "diffusion": {"variance_weight": 0.001}},
    ],
    ids=str,
)
def test_stages_that_fit_are_taken(changes: dict[str, Any]) -> None:
    config = DiffusionStageConfig(**changes)
    assert {name: getattr(config, name) for name in ("crop", "model") if name in changes} == {
        name: changes[name] for name in ("crop", "model") if name in changes
    }


def test_the_files_of_a_perceptual_term_can_be_moved() -> None:
    plain = DiffusionStageConfig(**MICRO)
    assert not plain.local_files() and plain.move_files("/there/".__add__) == plain
    moved = DiffusionStageConfig(**MICRO | {"perceptual": VGG | {"weight": 0.5}}).move_files("/there/".__add__)
    assert moved.local_files() == {"perceptual.weights": "/there/vgg16.pth"}
    assert moved.perceptual is not None and moved.perceptual.weight == 0.5
    both = DiffusionStageConfig(**MICRO | {"perceptual": VGG | {"lpips": "vgg.pth"}}).move_files("/there/".__add__)
    assert both.local_files() == {"perceptual.weights": "/there/vgg16.pth", "perceptual.lpips": "/there/vgg.pth"}
