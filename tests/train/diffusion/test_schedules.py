"""Noise schedules and conversions between predictions, against closed forms."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.gaussian import normal
from train.beta_schedule import BetaSchedule, log_snr_table
from train.diffusion.config import Prediction, ScheduleName
from train.diffusion.schedules import (
    SCHEDULES,
    add_noise,
    alpha_sigma,
    cosine_log_snr,
    eps_from_x0,
    flow_log_snr,
    linear_log_snr,
    log_snr_at,
    log_snr_slope,
    network_input,
    prediction_target,
    time_at_log_snr,
    x0_from_output,
)

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def test_schedules_equal_their_formulas() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    cosine = -torch.log(torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** -2 - 1)
    torch.testing.assert_close(cosine_log_snr(t), cosine)
    torch.testing.assert_close(linear_log_snr(t), -torch.log(torch.expm1(1e-4 + 10 * t**2)))
    torch.testing.assert_close(flow_log_snr(t), torch.log((1 - t) ** 2 / t**2))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_fall_and_stay_finite(name: ScheduleName) -> None:
    values = log_snr_at(torch.linspace(0, 1, 1001), name)
    assert bool((values[1:] <= values[:-1]).all()) and bool(values.isfinite().all())
    assert values[0] > 7 and values[-1] < -9
    alpha, sigma = alpha_sigma(values)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert torch.equal(log_snr_at(torch.tensor([0.5]), name, 1.5), log_snr_at(torch.tensor([0.5]), name) + 1.5)


def test_scales_are_those_of_the_papers() -> None:
    t = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    alpha, sigma = alpha_sigma(cosine_log_snr(t))
    assert alpha.dtype == torch.float64
    angle = (t + 0.008) / 1.008 * math.pi / 2
    torch.testing.assert_close(alpha.flatten(), angle.cos(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma.flatten(), angle.sin(), rtol=1e-12, atol=1e-12)
    alpha, sigma = alpha_sigma(linear_log_snr(t))
    torch.testing.assert_close(alpha.flatten() ** 2, torch.exp(-1e-4 - 10 * t**2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma.flatten() ** 2, -torch.expm1(-1e-4 - 10 * t**2), rtol=1e-12, atol=1e-12)


def betas(count: int = 1000) -> Tensor:
    return torch.linspace(1e-4, 0.02, count, dtype=torch.float64)


def test_the_linear_schedule_is_the_discrete_one_made_continuous() -> None:
    # beta(t) = 0.1 + 19.9 t integrates to 0.1 t + 9.95 t^2; the form in use drops the linear term for 1e-4 + 10 t^2.
    product = torch.cumprod(1 - betas(), 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    apart = (linear_log_snr(t) - torch.log(product / (1 - product)))[100:].abs()
    assert float(apart.max()) < 0.2


def test_the_slope_of_a_discrete_schedule_is_that_of_its_table() -> None:
    betas = BetaSchedule()
    table = log_snr_table(betas)
    for step in (0, 1, 500, 998):
        between = table[step : step + 2].mean().view(1).float()
        slope = log_snr_slope(between, "discrete", betas=betas)
        torch.testing.assert_close(slope, ((table[step] - table[step + 1]) * 999).view(1).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
def test_the_slope_is_the_schedules_derivative(schedule: ScheduleName) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    step, at = 1e-3, lambda t: log_snr_at(t, schedule, 0.7)
    slope = -(at(t + step) - at(t - step)) / (2 * step)
    torch.testing.assert_close(log_snr_slope(at(t), schedule, 0.7), slope, atol=0, rtol=5e-3)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_time_of_a_noise_level_is_the_schedules_inverse(schedule: ScheduleName) -> None:
    t, shift = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), 0.0 if schedule == "discrete" else 0.7
    back = time_at_log_snr(log_snr_at(t, schedule, shift).double(), schedule, shift).double()
    torch.testing.assert_close(back, t, atol=2e-5, rtol=1e-5)


def test_the_flow_path_is_linear_and_its_network_sees_it() -> None:
    t, x0, noise = torch.linspace(0.01, 0.99, 9), normal(9, 3, 4, 4), normal(9, 3, 4, 4, seed=1)
    at, share = log_snr_at(t, "flow"), t.view(-1, 1, 1, 1)
    seen = network_input(add_noise(x0, noise, at), at, "flow")
    torch.testing.assert_close(seen, (1 - share) * x0 + share * noise)
    torch.testing.assert_close(prediction_target("velocity", x0, noise, at), noise - x0)  # d seen / dt
    assert network_input(x0, at, "cosine") is x0


@pytest.mark.parametrize("size", [32, 256])
def test_a_shift_of_log_snr_on_the_flow_path_is_that_of_sd3(size: int) -> None:
    t, scale = torch.linspace(0.01, 0.99, 99), size / 64
    shifted = scale * t / (1 + (scale - 1) * t)  # Esser et al. 2024, equation 23, from 64 pixels
    torch.testing.assert_close(log_snr_at(t, "flow", 2 * math.log(64 / size)), log_snr_at(shifted, "flow"))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(PREDICTIONS), st.floats(-8, 8), st.integers(0, 99))
def test_predictions_invert(prediction: Prediction, log_snr: float, seed: int) -> None:
    x0, noise, at = normal(2, 3, 4, 4, seed=seed), normal(2, 3, 4, 4, seed=seed + 1), torch.full((2,), log_snr)
    x = add_noise(x0, noise, at)
    found = x0_from_output(prediction, prediction_target(prediction, x0, noise, at), x, at)
    torch.testing.assert_close(found, x0, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(eps_from_x0(x0, x, at), noise, atol=2e-4, rtol=1e-3)


def test_unknown_names_are_refused() -> None:
    x, at = normal(1, 3, 2, 2), torch.zeros(1)
    with pytest.raises(ValueError, match="schedule 'sine' is unknown; take one of cosine, linear, flow"):
        log_snr_at(torch.zeros(1), "sine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prediction 'y' is unknown"):
        prediction_target("y", x, x, at)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prediction 'y' is unknown"):
        x0_from_output("y", x, x, at)  # type: ignore[arg-type]


def test_config_names_are_the_registry() -> None:
    assert set(get_args(ScheduleName)) == set(SCHEDULES)
