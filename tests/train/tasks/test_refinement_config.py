"""Config of the task `refinement`: it takes the layout of its autoencoder, and refuses what does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from train.models.refiner.config import RefinerConfig
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.vq_config import VqTrainingConfig

STAGE: dict[str, Any] = {"resolution": 64, "low_resolution": 16, "autoencoder": "vq64"}


def test_it_takes_the_layout_of_its_autoencoder() -> None:
    vq = VqTrainingConfig(resolution=64, model_overrides={"widths": (8, 16, 16), "codes": 99})
    stage = RefinementTrainingConfig(**STAGE).take_from({"vq64": vq})
    config = stage.denoiser_config(32)
    assert isinstance(config, RefinerConfig) and config.autoencoder == vq.autoencoder_config()
    assert stage.size_multiple() == config.patch == 8 and config.text_dim == 32
    assert stage.needed() == ("vq64",) and stage.pixel_columns() == ("pixels_64", "pixels_16")


@pytest.mark.parametrize(
    ("trainings", "words"),
    [
        ({}, "autoencoder=vq64 is no entry of `train` with task: vq; add one"),
        ({"vq16": VqTrainingConfig(resolution=16)}, "with task: vq; take one of vq16"),
        ({"vq64": VqTrainingConfig(resolution=16)}, "trained at resolution 16; train one at 64"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(trainings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RefinementTrainingConfig(**STAGE).take_from(trainings)


def test_crops_have_to_be_whole_codes_and_windows() -> None:
    windows = {"window": 2, "positions": False, "attention": "cross"}
    stage = RefinementTrainingConfig(**STAGE, crop=32, model_overrides=windows)
    vq = VqTrainingConfig(resolution=64, model_overrides={"patch": 16})
    with pytest.raises(ValueError, match="autoencoder=vq64 needs multiples of 64 pixels, not 32"):
        stage.take_from({"vq64": vq})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "tiny-sr64"}, "model=tiny-sr64 is trained by task: diffusion"),
        ({"diffusion": {"prediction": "x0"}}, "diffusion.prediction=x0: codes are not denoised; leave it out"),
        ({"perceptual": {"weights": "vgg16.pth"}}, "perceptual: codes are compared, not images"),
        ({"token_drop": 0.5}, "token_drop=0.5: only a diffusion stage has it"),
        ({"low_resolution": None}, "is not a base model"),
        ({"crop": 32}, "crop=32: model=refiner-tiny has"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RefinementTrainingConfig(**{**STAGE, **changes})


def test_a_diffusion_stage_does_not_train_a_refiner() -> None:
    with pytest.raises(ValueError, match="model=refiner-tiny is trained by task: refinement; set it"):
        DiffusionTrainingConfig(resolution=64, low_resolution=16, model="refiner-tiny")
