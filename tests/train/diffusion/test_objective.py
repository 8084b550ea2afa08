"""Loss and noise conditioning augmentation, against closed forms."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.helpers.gaussian import normal
from train.diffusion.config import DiffusionConfig, Prediction, Weighting
from train.diffusion.objective import (
    augment_lowres,
    diffusion_loss,
    to_model_range,
    to_pixels,
    upsample_lowres,
)
from train.diffusion.schedules import (
    eps_from_x0,
    prediction_target,
)

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@pytest.mark.parametrize("weighting", ["min_snr", "sigmoid"])
def test_weighted_loss_is_the_same_in_every_prediction(weighting: Weighting) -> None:
    x0, noise, t = normal(4, 3, 4, 4), normal(4, 3, 4, 4, seed=1), torch.tensor([0.1, 0.3, 0.6, 0.9])
    guess = normal(4, 3, 4, 4, seed=2)
    losses = []
    for prediction in PREDICTIONS:
        config = DiffusionConfig(prediction=prediction, weighting=weighting)

        def model(x: Tensor, at: Tensor, prediction: Prediction = prediction) -> Tensor:
            return prediction_target(prediction, guess, eps_from_x0(guess, x, at), at)

        value, x0_hat = diffusion_loss(model, x0, t, noise, config)
        torch.testing.assert_close(x0_hat, guess, atol=1e-3, rtol=1e-3)
        losses.append(value)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(losses[2], losses[1], atol=1e-4, rtol=1e-3)


def test_loss_of_a_perfect_model_is_zero() -> None:
    x0, noise, t = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1), torch.tensor([0.2, 0.5, 0.8])
    value, _ = diffusion_loss(lambda x, at: prediction_target("v", x0, noise, at), x0, t, noise, DiffusionConfig())
    assert value.shape == (3,) and float(value.max()) == 0


def test_lowres_augmentation() -> None:
    config, lowres = DiffusionConfig(), normal(2, 3, 4, 4)
    clean, log_snr = augment_lowres(lowres, torch.tensor([0.0, 1.0]), normal(2, 3, 4, 4, seed=1), config)
    torch.testing.assert_close(clean[0], lowres[0], atol=0.06, rtol=0.02)
    assert float((clean[1] - normal(2, 3, 4, 4, seed=1)[1]).abs().max()) < 0.01
    assert log_snr[0] > log_snr[1]


def test_pixels_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    x = to_model_range(pixels)
    assert x.shape == (1, 3, 16, 16) and x.min() == -1 and x.max() == 1
    assert torch.equal(to_pixels(x), pixels)
    assert upsample_lowres(x, 32).shape == (1, 3, 32, 32) and upsample_lowres(x, (32, 64)).shape == (1, 3, 32, 64)
