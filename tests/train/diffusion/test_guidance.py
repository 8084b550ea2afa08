"""Guidance and thresholds, against the paper's equations and code."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.gaussian import normal
from train.diffusion import guidance
from train.diffusion.config import DiffusionConfig, GuidanceConfig, Prediction
from train.diffusion.guidance import (
    ALL_LEVELS,
    GuidedDenoiser,
    LogSnrInterval,
    apply_guidance,
    apply_threshold,
    dynamic_threshold,
    guide_model,
    rescale_guidance,
    static_threshold,
)
from train.diffusion.projected_guidance import DifferenceMemory, Projection, projected_guidance
from train.diffusion.schedules import (
    eps_from_x0,
    log_snr_at,
    prediction_target,
    x0_from_output,
)

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def test_guidance_and_thresholds() -> None:
    a, b = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(apply_guidance(a, b, 1.0), a)
    torch.testing.assert_close(apply_guidance(a, b, 0.0), b)
    torch.testing.assert_close(apply_guidance(a, b, 3.0), 3 * a - 2 * b)
    assert float(static_threshold(a * 9).abs().max()) == 1
    quiet = a.clamp(-0.9, 0.9)
    torch.testing.assert_close(dynamic_threshold(quiet), quiet)
    loud = torch.stack([quiet[0], quiet[1] * 5])
    found = dynamic_threshold(loud, 1.0)
    torch.testing.assert_close(found[0], quiet[0])
    torch.testing.assert_close(found[1], loud[1] / loud[1].abs().max())
    assert torch.equal(apply_threshold(loud, "none"), loud)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.995, 1.0])
def test_thresholds_of_large_images_are_those_of_small_ones(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    for height in (4, 5):  # 60 and 75 values
        loud = 5 * normal(2, 3, height, 5)
        wanted = dynamic_threshold(loud, share)
        with monkeypatch.context() as patch:
            patch.setattr(guidance, "QUANTILE_LIMIT", 50)
            patch.setattr(torch, "quantile", None)
            torch.testing.assert_close(dynamic_threshold(loud, share), wanted)


def test_an_image_above_the_limit_of_quantiles_has_a_threshold() -> None:
    side = math.isqrt(guidance.QUANTILE_LIMIT) + 1
    found = dynamic_threshold(4 * torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)), 0.75)
    assert float((found == 1).float().mean()) == pytest.approx(0.25, abs=1e-3)


def test_guided_denoiser_calls_the_model_once_per_step() -> None:
    calls: list[Tensor] = []

    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        calls.append(keep)
        return torch.where(keep.view(-1, 1, 1, 1), 0.2, 0.1).expand_as(x)

    x, at = normal(2, 3, 4, 4), torch.zeros(2)
    torch.testing.assert_close(GuidedDenoiser(model, "x0", 3.0)(x, at), torch.full_like(x, 0.4))
    torch.testing.assert_close(GuidedDenoiser(model, "x0", 1.0)(x, at), torch.full_like(x, 0.2))
    assert [keep.tolist() for keep in calls] == [[True, True, False, False], [True, True]]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_guidance_is_equation_2_in_every_prediction(prediction: Prediction) -> None:
    x, at = normal(2, 3, 4, 4), torch.tensor([-0.5, -0.5])
    with_text, without = normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)  # eps of the two halves

    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        eps = torch.cat([with_text, without])
        return prediction_target(prediction, x0_from_output("eps", eps, x, at), eps, at)

    found = GuidedDenoiser(model, prediction, 4.0, "none")(x, at)
    eps = 4.0 * with_text.numpy() - 3.0 * without.numpy()  # w eps(z, c) + (1 - w) eps(z)
    alpha, sigma = math.sqrt(1 / (1 + math.exp(0.5))), math.sqrt(1 / (1 + math.exp(-0.5)))
    np.testing.assert_allclose(found.numpy(), (x.numpy() - sigma * eps) / alpha, rtol=2e-4, atol=2e-4)


def test_dynamic_threshold_is_the_code_of_the_paper() -> None:
    x0 = normal(3, 3, 8, 8) * torch.tensor([0.2, 1.0, 5.0]).view(3, 1, 1, 1)
    for percentile in (0.9, 0.995):
        wanted = []
        for image in x0.numpy():  # A.32, line by line
            s = np.percentile(np.abs(image).reshape(-1), 100 * percentile)
            s = np.maximum(s, 1.0)
            wanted.append(np.clip(image, -s, s) / s)
        np.testing.assert_allclose(dynamic_threshold(x0, percentile).numpy(), np.stack(wanted), rtol=1e-5, atol=1e-6)


def test_rescale_restores_the_standard_deviation() -> None:
    conditional, guided = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1) * 3
    whole = rescale_guidance(guided, conditional, 1.0)
    torch.testing.assert_close(whole.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))
    torch.testing.assert_close(rescale_guidance(guided, conditional, 0.3), 0.3 * whole + 0.7 * guided)
    assert torch.equal(rescale_guidance(guided, conditional, 0.0), guided)
    assert bool(rescale_guidance(torch.zeros(1, 3, 2, 2), conditional[:1], 1.0).isfinite().all())


def test_guidance_is_off_outside_of_its_interval() -> None:
    rows: list[int] = []

    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        rows.append(len(x))
        return torch.where(keep.view(-1, 1, 1, 1), 0.2, 0.1).expand_as(x)

    denoise = GuidedDenoiser(model, "x0", 3.0, interval=LogSnrInterval(-1.0, 2.0))
    values = [float(denoise(normal(2, 1, 2, 2), torch.full((2,), at))[0, 0, 0, 0]) for at in (-3.0, -1.0, 2.0, 2.5)]
    assert rows == [2, 4, 4, 2]
    assert values == pytest.approx([0.2, 0.4, 0.4, 0.2])


def test_an_interval_holds_for_each_row() -> None:
    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep.view(-1, 1, 1, 1), 0.2, 0.1).expand_as(x)

    denoise = GuidedDenoiser(model, "x0", 3.0, interval=LogSnrInterval(-1.0, 2.0))
    found = denoise(normal(3, 1, 2, 2), torch.tensor([-3.0, 0.0, 2.5]))
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.2])


def test_guidance_is_asked_for_every_other_step_and_used_again() -> None:
    rows: list[int] = []

    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        rows.append(len(x))
        other = 0.1 if at[0] < 2 else 0.0
        return torch.where(keep.view(-1, 1, 1, 1), 0.2, other).expand_as(x)

    denoise = GuidedDenoiser(model, "x0", 3.0, every=2)
    values = [float(denoise(normal(2, 1, 2, 2), torch.full((2,), at))[0, 0, 0, 0]) for at in (0.0, 1.0, 2.0, 3.0)]
    assert rows == [4, 2, 4, 2] and values == pytest.approx([0.4, 0.4, 0.6, 0.6])
    rows.clear()
    inside = GuidedDenoiser(model, "x0", 3.0, interval=LogSnrInterval(0.5, 9.0), every=2)
    values = [float(inside(normal(2, 1, 2, 2), torch.full((2,), at))[0, 0, 0, 0]) for at in (0.0, 1.0, 1.5, 2.0)]
    assert rows == [2, 4, 2, 4] and values == pytest.approx([0.2, 0.4, 0.4, 0.6])


def test_settings_become_a_guided_denoiser() -> None:
    settings = GuidanceConfig(
        guidance=2.0,
        guidance_rescale=0.3,
        guidance_interval=(0.2, 1.0),
        guidance_parallel=0.1,
        guidance_norm=0.7,
        guidance_momentum=-0.5,
        guidance_every=3,
        threshold="static",
        threshold_max=1.5,
    )
    denoise = guide_model(lambda x, at, keep: x, DiffusionConfig(prediction="x0"), settings)
    assert (
        denoise.projection == (0.1, 0.7, -0.5)
        and denoise.every == 3
        and denoise.rescale == 0.3
        and denoise.maximum == 1.5
    )
    ends = log_snr_at(torch.tensor([1.0, 0.2]), "cosine")
    assert tuple(denoise.interval) == pytest.approx(ends.tolist())
    assert guide_model(lambda x, at, keep: x, DiffusionConfig(), GuidanceConfig()).interval == ALL_LEVELS


def test_projected_guidance_works_on_clean_images() -> None:
    x, at = normal(2, 3, 4, 4), torch.tensor([-0.5, -0.5])
    with_text, without = normal(2, 3, 4, 4, seed=1) / 3, normal(2, 3, 4, 4, seed=2) / 3  # clean images
    projection = Projection(0.0, 0.2, -0.5)
    found = []
    for prediction in PREDICTIONS:

        def model(x: Tensor, at: Tensor, keep: Tensor, prediction: Prediction = prediction) -> Tensor:
            clean = torch.cat([with_text, without])
            return prediction_target(prediction, clean, eps_from_x0(clean, x, at), at)

        found.append(GuidedDenoiser(model, prediction, 4.0, "none", projection=projection)(x, at))
    wanted = projected_guidance(with_text, with_text - without, 4.0, projection, DifferenceMemory())
    for one in found:
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "dynamic"),
        ({"guidance": 1.5}, "dynamic"),
        ({"guidance": 1.0}, "static"),
        ({"guidance": 0.0}, "static"),
        ({"guidance": 1.0, "threshold": "dynamic"}, "dynamic"),
        ({"guidance": 4.0, "threshold": "none"}, "none"),
    ],
)
def test_the_threshold_is_dynamic_where_guidance_saturates(settings: dict[str, Any], wanted: str) -> None:
    assert guide_model(lambda x, at, keep: x, DiffusionConfig(), GuidanceConfig(**settings)).threshold == wanted


def test_an_overshoot_darkens_no_unguided_image() -> None:
    def overshoot(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        return torch.tensor([0.5, 1.2]).expand_as(x)

    denoise = guide_model(overshoot, DiffusionConfig(prediction="x0"), GuidanceConfig(guidance=1.0))
    torch.testing.assert_close(denoise(torch.zeros(1, 3, 2, 2), torch.zeros(1))[0, 0, 0], torch.tensor([0.5, 1.0]))


def test_unknown_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold 'soft' is unknown"):
        apply_threshold(normal(1, 3, 2, 2), "soft")  # type: ignore[arg-type]


def test_the_dynamic_threshold_has_a_largest_bound() -> None:
    x0 = normal(2, 3, 8, 8) * torch.tensor([0.2, 5.0]).view(2, 1, 1, 1)
    found = dynamic_threshold(x0, 0.95, 1.5)
    torch.testing.assert_close(found[0], x0[0].clamp(-1, 1))
    torch.testing.assert_close(found[1], x0[1].clamp(-1.5, 1.5) / 1.5)
    assert torch.equal(apply_threshold(x0, "dynamic", 0.95, 1.5), found)
    assert torch.equal(dynamic_threshold(x0, 0.95, 1.0), x0.clamp(-1, 1))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_learned_variance_is_that_of_the_caption(scale: float) -> None:
    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep.view(-1, 1, 1, 1), 0.2, 0.1).expand(len(x), 6, 4, 4)

    denoise = GuidedDenoiser(model, "x0", scale, "none")
    x0, variance = denoise.predict_with_variance(normal(2, 3, 4, 4), torch.zeros(2))
    assert variance is not None and variance.shape == x0.shape == (2, 3, 4, 4)
    torch.testing.assert_close(variance, torch.full_like(variance, 0.2))
    torch.testing.assert_close(x0, torch.full_like(x0, 0.1 + scale * 0.1))
    plain = GuidedDenoiser(lambda x, at, keep: model(x, at, keep)[:, :3], "x0", scale, "none")
    assert plain.predict_with_variance(normal(2, 3, 4, 4), torch.zeros(2))[1] is None
