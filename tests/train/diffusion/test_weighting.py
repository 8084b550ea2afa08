"""Loss weightings against closed forms, and one that is registered from outside."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.helpers.gaussian import normal
from train.diffusion.config import DiffusionConfig, Prediction, ScheduleName
from train.diffusion.objective import diffusion_loss, log_snr_at_time
from train.diffusion.schedules import alpha_sigma, eps_from_x0, prediction_target
from train.diffusion.times import draw_times
from train.diffusion.weighting import WEIGHTINGS, convert_x0_weight, loss_weight


def test_loss_weights() -> None:
    at = torch.tensor([-4.0, 0.0, 4.0])
    assert torch.equal(loss_weight(at, DiffusionConfig(weighting="plain")), torch.ones(3))
    weights = loss_weight(at, DiffusionConfig(prediction="x0", weighting="min_snr", min_snr_gamma=5.0))
    torch.testing.assert_close(weights, at.exp().clamp(max=5.0))


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
@pytest.mark.parametrize(("schedule", "shift"), [("cosine", 0.0), ("cosine", -2.0), ("linear", 0.0), ("flow", 1.0)])
def test_the_sigmoid_weight_is_one_over_log_snr_whatever_the_schedule(
    schedule: ScheduleName, shift: float, times: str
) -> None:
    """What a constant error of eps between two noise levels adds to the loss depends on these alone."""
    config = DiffusionConfig(
        prediction="eps", weighting="sigmoid", schedule=schedule, log_snr_shift=shift, sigmoid_bias=1, times=times
    )
    t = draw_times((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000, config)
    at = log_snr_at_time(config, t)
    inside = (at > -3) & (at < 4)
    found = float((loss_weight(at, config) * inside).mean())
    between = torch.linspace(-3, 4, 10_001, dtype=torch.float64)
    assert found == pytest.approx(float(torch.trapezoid(torch.sigmoid(1 - between), between)), rel=2e-3)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
def test_the_velocity_weight_makes_it_the_loss_of_the_velocity(prediction: Prediction) -> None:
    """Whatever the network predicts, where the flow time is not below the least one."""
    config = DiffusionConfig(schedule="flow", prediction=prediction, weighting="velocity", velocity_min_time=0.2)
    x0, noise, guess = (normal(3, 3, 4, 4, seed=seed) for seed in range(3))
    t = torch.tensor([0.1, 0.3, 0.9])

    def predict(z: Tensor, at: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(at)
        x = z * (alpha + sigma)
        return prediction_target(prediction, guess, eps_from_x0(guess, x, at), at)

    found, _ = diffusion_loss(predict, x0, t, noise, config)
    wanted = ((guess - x0) / t.clamp(min=0.2).view(-1, 1, 1, 1)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def weigh_truncated_snr(log_snr_B: Tensor, config: DiffusionConfig) -> Tensor:
    """max(SNR, 1) on the error of x_0 (Salimans and Ho 2022, section 4)."""
    return convert_x0_weight(log_snr_B.exp().clamp(min=1), log_snr_B, config.prediction)


def test_a_new_weighting_is_a_choice_of_the_config_and_scales_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValidationError, match="'truncated' is unknown; take one of plain, min_snr, sigmoid, velocity, elbo"
    ):
        DiffusionConfig(weighting="truncated")
    monkeypatch.setitem(WEIGHTINGS, "truncated", weigh_truncated_snr)
    t, images = torch.tensor([0.2, 0.9]), [normal(2, 3, 4, 4, seed=seed) for seed in range(3)]
    loss = {
        name: diffusion_loss(lambda x, at: images[2], images[0], t, images[1], DiffusionConfig(weighting=name))[0]
        for name in ("plain", "truncated")
    }
    snr = log_snr_at_time(DiffusionConfig(), t).exp()
    torch.testing.assert_close(loss["truncated"], loss["plain"] * snr.clamp(min=1) / (snr + 1))
