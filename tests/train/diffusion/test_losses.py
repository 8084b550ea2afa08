"""Losses against their formulas, and one that is registered from outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from tests.helpers.gaussian import normal
from train.diffusion.config import DiffusionConfig, Prediction
from train.diffusion.losses import LOSSES
from train.diffusion.objective import diffusion_loss
from train.diffusion.schedules import eps_from_x0, prediction_target

ERROR, WEIGHT = normal(3, 3, 4, 4), torch.tensor([0.25, 1.0, 9.0])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("l2", lambda e: e.square()),
        ("l1", lambda e: e.abs()),
        ("huber", lambda e: 2 * functional.huber_loss(e, torch.zeros_like(e), reduction="none", delta=0.3)),
    ],
)
def test_losses_are_those_of_the_weighted_error(name: str, formula: Callable[[Tensor], Tensor]) -> None:
    found = LOSSES[name](ERROR, WEIGHT, DiffusionConfig(huber_delta=0.3))
    weighted = ERROR * WEIGHT.sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(found, formula(weighted).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_weighted_loss_is_the_same_in_every_prediction(loss: str) -> None:
    x0, noise, guess = (normal(3, 3, 4, 4, seed=seed) for seed in range(3))
    losses = []
    predictions: tuple[Prediction, ...] = ("eps", "x0", "v", "velocity")
    for prediction in predictions:

        def predict(x: Tensor, at: Tensor, prediction: Prediction = prediction) -> Tensor:
            return prediction_target(prediction, guess, eps_from_x0(guess, x, at), at)

        config = DiffusionConfig(prediction=prediction, weighting="min_snr", loss=loss)
        losses.append(diffusion_loss(predict, x0, torch.tensor([0.2, 0.5, 0.8]), noise, config)[0])
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], atol=1e-4, rtol=1e-3)


def test_large_errors_count_less_in_huber_and_l1() -> None:
    near, far = torch.full((1, 1, 1, 1), 0.05), torch.full((1, 1, 1, 1), 5.0)
    one, config = torch.ones(1), DiffusionConfig()
    ratio = {name: float(loss(far, one, config) / loss(near, one, config)) for name, loss in LOSSES.items()}
    assert ratio["l2"] == pytest.approx(1e4, rel=1e-3) and ratio["l1"] == pytest.approx(100, rel=1e-3)
    assert ratio["l1"] < ratio["huber"] < ratio["l2"]


def test_a_new_loss_is_a_choice_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="'l4' is unknown; take one of l2, l1, huber"):
        DiffusionConfig(loss="l4")
    monkeypatch.setitem(LOSSES, "l4", lambda error, weight, config: error.pow(4).mean(dim=(1, 2, 3)))
    found, _ = diffusion_loss(
        lambda x, at: torch.full_like(x, 2.0), ERROR * 0, torch.rand(3), ERROR * 0, DiffusionConfig(loss="l4")
    )
    torch.testing.assert_close(found, torch.full((3,), 16.0))


def test_the_bound_is_of_squared_errors_at_all_levels() -> None:
    with pytest.raises(ValidationError, match="loss=l1: weighting=elbo is a bound of squared errors; set loss to l2"):
        DiffusionConfig(weighting="elbo", loss="l1")
    with pytest.raises(ValidationError, match="times=logit_normal: weighting=elbo adds up all noise levels"):
        DiffusionConfig(weighting="elbo", times="logit_normal")
