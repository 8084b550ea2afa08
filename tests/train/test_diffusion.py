"""Diffusion maths: schedules, predictions, losses, guidance, samplers against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.diffusion.guidance import (
    Denoiser,
    apply_threshold,
    dynamic_threshold,
    guide,
    guided_denoiser,
    static_threshold,
)
from train.diffusion.noise import noise_seed, sample_noise
from train.diffusion.objective import (
    DiffusionConfig,
    augment_lowres,
    loss,
    loss_weight,
    to_model_range,
    to_pixels,
    upsample,
)
from train.diffusion.samplers import SAMPLERS, sampler_named, sampling_log_snrs
from train.diffusion.schedules import (
    SCHEDULES,
    add_noise,
    alpha_sigma,
    cosine_log_snr,
    eps_from_x0,
    linear_log_snr,
    log_snr_at,
    log_snr_slope,
    target_of,
    x0_from,
)

PREDICTIONS = ("eps", "x0", "v")


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_schedules_equal_their_formulas() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    cosine = -torch.log(torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** -2 - 1)
    torch.testing.assert_close(cosine_log_snr(t), cosine)
    torch.testing.assert_close(linear_log_snr(t), -torch.log(torch.expm1(1e-4 + 10 * t**2)))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_fall_and_stay_finite(name: str) -> None:
    values = log_snr_at(torch.linspace(0, 1, 1001), name)
    assert bool((values[1:] <= values[:-1]).all()) and bool(values.isfinite().all())
    assert values[0] > 7 and values[-1] < -9
    alpha, sigma = alpha_sigma(values)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert torch.equal(log_snr_at(torch.tensor([0.5]), name, 1.5), log_snr_at(torch.tensor([0.5]), name) + 1.5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(PREDICTIONS), st.floats(-8, 8), st.integers(0, 99))
def test_predictions_invert(prediction: str, log_snr: float, seed: int) -> None:
    x0, noise, at = images(2, 3, 4, 4, seed=seed), images(2, 3, 4, 4, seed=seed + 1), torch.full((2,), log_snr)
    x = add_noise(x0, noise, at)
    found = x0_from(prediction, target_of(prediction, x0, noise, at), x, at)
    torch.testing.assert_close(found, x0, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(eps_from_x0(x0, x, at), noise, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("weighting", ["min_snr", "sigmoid"])
def test_weighted_loss_is_the_same_in_every_prediction(weighting: str) -> None:
    x0, noise, t = images(4, 3, 4, 4), images(4, 3, 4, 4, seed=1), torch.tensor([0.1, 0.3, 0.6, 0.9])
    guess = images(4, 3, 4, 4, seed=2)
    losses = []
    for prediction in PREDICTIONS:
        config = DiffusionConfig(prediction=prediction, weighting=weighting)

        def model(x: torch.Tensor, at: torch.Tensor, prediction: str = prediction) -> torch.Tensor:
            return target_of(prediction, guess, eps_from_x0(guess, x, at), at)

        value, x0_hat = loss(model, x0, t, noise, config)
        torch.testing.assert_close(x0_hat, guess, atol=1e-3, rtol=1e-3)
        losses.append(value)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(losses[2], losses[1], atol=1e-4, rtol=1e-3)


def test_loss_weights() -> None:
    at = torch.tensor([-4.0, 0.0, 4.0])
    assert torch.equal(loss_weight(at, DiffusionConfig(weighting="plain")), torch.ones(3))
    weights = loss_weight(at, DiffusionConfig(prediction="x0", weighting="min_snr", min_snr_gamma=5.0))
    torch.testing.assert_close(weights, at.exp().clamp(max=5.0))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_slope_is_the_schedules_derivative(schedule: str) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    step, at = 1e-3, lambda t: log_snr_at(t, schedule, 0.7)
    slope = -(at(t + step) - at(t - step)) / (2 * step)
    torch.testing.assert_close(log_snr_slope(at(t), schedule, 0.7), slope, atol=0, rtol=5e-3)


@pytest.mark.parametrize(("schedule", "shift"), [("cosine", 0.0), ("cosine", -2.0), ("linear", 0.0)])
def test_the_sigmoid_weight_is_one_over_log_snr_whatever_the_schedule(schedule: str, shift: float) -> None:
    """What a constant error of eps between two noise levels adds to the loss depends on these alone."""
    config = DiffusionConfig(
        prediction="eps", weighting="sigmoid", schedule=schedule, log_snr_shift=shift, sigmoid_bias=1
    )
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    at = config.log_snr(t)
    inside = (at > -3) & (at < 4)
    found = float((loss_weight(at, config) * inside).mean())
    between = torch.linspace(-3, 4, 10_001, dtype=torch.float64)
    assert found == pytest.approx(float(torch.trapezoid(torch.sigmoid(1 - between), between)), rel=2e-3)


def test_loss_of_a_perfect_model_is_zero() -> None:
    x0, noise, t = images(3, 3, 4, 4), images(3, 3, 4, 4, seed=1), torch.tensor([0.2, 0.5, 0.8])
    value, _ = loss(lambda x, at: target_of("v", x0, noise, at), x0, t, noise, DiffusionConfig())
    assert value.shape == (3,) and float(value.max()) == 0


def test_lowres_augmentation() -> None:
    config, lowres = DiffusionConfig(), images(2, 3, 4, 4)
    clean, log_snr = augment_lowres(lowres, torch.tensor([0.0, 1.0]), images(2, 3, 4, 4, seed=1), config)
    torch.testing.assert_close(clean[0], lowres[0], atol=0.06, rtol=0.02)
    assert float((clean[1] - images(2, 3, 4, 4, seed=1)[1]).abs().max()) < 0.01
    assert log_snr[0] > log_snr[1]


def test_pixels_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    x = to_model_range(pixels)
    assert x.shape == (1, 3, 16, 16) and x.min() == -1 and x.max() == 1
    assert torch.equal(to_pixels(x), pixels)
    assert upsample(x, 32).shape == (1, 3, 32, 32) and upsample(x, (32, 64)).shape == (1, 3, 32, 64)


def test_guidance_and_thresholds() -> None:
    a, b = images(2, 3, 4, 4), images(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(guide(a, b, 1.0), a)
    torch.testing.assert_close(guide(a, b, 0.0), b)
    torch.testing.assert_close(guide(a, b, 3.0), 3 * a - 2 * b)
    assert float(static_threshold(a * 9).abs().max()) == 1
    quiet = a.clamp(-0.9, 0.9)
    torch.testing.assert_close(dynamic_threshold(quiet), quiet)
    loud = torch.stack([quiet[0], quiet[1] * 5])
    found = dynamic_threshold(loud, 1.0)
    torch.testing.assert_close(found[0], quiet[0])
    torch.testing.assert_close(found[1], loud[1] / loud[1].abs().max())
    assert torch.equal(apply_threshold(loud, "none"), loud)


def test_guided_denoiser_calls_once_a_step() -> None:
    calls: list[torch.Tensor] = []

    def model(x: torch.Tensor, at: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        calls.append(keep)
        return torch.where(keep.view(-1, 1, 1, 1), 0.2, 0.1).expand_as(x)

    x, at = images(2, 3, 4, 4), torch.zeros(2)
    torch.testing.assert_close(guided_denoiser(model, "x0", 3.0)(x, at), torch.full_like(x, 0.4))
    torch.testing.assert_close(guided_denoiser(model, "x0", 1.0)(x, at), torch.full_like(x, 0.2))
    assert [keep.tolist() for keep in calls] == [[True, True, False, False], [True, True]]


def gaussian_denoiser(mean: float, std: float) -> Denoiser:
    """The exact denoiser of data ~ N(mean, std^2)."""

    def denoise(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        alpha, sigma = alpha_sigma(at)
        variance = alpha**2 * std**2 + sigma**2
        return mean + alpha * std**2 / variance * (x - alpha * mean)

    return denoise


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers_reach_the_data_distribution(name: str) -> None:
    steps = 200
    log_snrs = sampling_log_snrs(DiffusionConfig().log_snr, steps)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4000, 1, 1, 1, generator=generator)
    x = sampler_named(name)(
        gaussian_denoiser(0.4, 0.3), start, log_snrs, lambda step: torch.randn(4000, 1, 1, 1, generator=generator)
    )
    assert abs(float(x.mean()) - 0.4) < 0.02
    assert abs(float(x.std()) - 0.3) < 0.02


def test_second_order_beats_first_order() -> None:
    start, exact = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1), torch.linspace(-2, 2, 9) * 0.3 + 0.4
    denoise = gaussian_denoiser(0.4, 0.3)
    error = {}
    for name in ("ddim", "dpmpp_2m"):
        log_snrs = sampling_log_snrs(DiffusionConfig().log_snr, 20)
        found = SAMPLERS[name](denoise, start, log_snrs, lambda step: start)
        error[name] = float((found.flatten() - exact).abs().max())
    assert error["dpmpp_2m"] < error["ddim"] < 0.1


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers_evaluate_once_a_step(name: str) -> None:
    for steps in (1, 2, 7):
        calls: list[float] = []

        def denoise(x: torch.Tensor, at: torch.Tensor, calls: list[float] = calls) -> torch.Tensor:
            calls.append(float(at[0]))
            return torch.full_like(x, 0.5)

        log_snrs = sampling_log_snrs(DiffusionConfig().log_snr, steps)
        found = SAMPLERS[name](denoise, images(2, 3, 2, 2), log_snrs, lambda step: images(2, 3, 2, 2, seed=step))
        assert len(calls) == steps and calls == sorted(calls)
        assert torch.equal(found, torch.full_like(found, 0.5))


def test_noise_is_a_function_of_the_sample() -> None:
    seeds = [(1, sample, 0) for sample in range(4)]
    together = sample_noise(seeds, (3, 4, 4))
    assert torch.equal(together[2:3], sample_noise(seeds[2:3], (3, 4, 4)))
    assert len({noise_seed(a, b) for a in range(50) for b in range(50)}) == 2500
    assert noise_seed(1, 2) != noise_seed(2, 1) and 0 <= noise_seed(2**64 - 1, -1) < 2**63


def test_unknown_names() -> None:
    x, at = images(1, 3, 2, 2), torch.zeros(1)
    with pytest.raises(ValueError, match="schedule 'sine' is unknown; take one of cosine, linear"):
        log_snr_at(torch.zeros(1), "sine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prediction 'y' is unknown"):
        target_of("y", x, x, at)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prediction 'y' is unknown"):
        x0_from("y", x, x, at)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold 'soft' is unknown"):
        apply_threshold(x, "soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sampler 'euler' is unknown"):
        sampler_named("euler")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps 0 is too few"):
        sampling_log_snrs(DiffusionConfig().log_snr, 0)
