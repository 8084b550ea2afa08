"""Bits of held-out images under a stage: Gaussian data with its exact denoiser, parts, the small image, the metric."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.metrics.base import JudgedSamples
from eval.metrics.config import LikelihoodConfig
from eval.metrics.feature_models import ClipIdentity
from eval.metrics.likelihood import Likelihood, collect_likelihood, measure_likelihood
from eval.metrics.registry import compute_metrics
from eval.sampling.config import StageEntry
from eval.sampling.stage_sampler import EncodedPrompts, LoadedStage, pad_text
from tests.helpers.gaussian import exact_denoiser, normal
from train.diffusion.config import DiffusionConfig
from train.diffusion.schedules import alpha_sigma
from train.models.base import Conditions, DenoiserConfig

MEAN, STD, COUNT = 0.1, 0.3, 48
CONFIG = LikelihoodConfig(levels=16, steps=24)
CLIP = ClipIdentity("none", "", None)


class ExactDenoiser(nn.Module):
    """Knows the data, as x_0; with a small image, that the large one is it plus noise of `STD`."""

    config = DenoiserConfig()

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.calls: list[Conditions] = []

    def forward(self, z_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        self.calls.append(conditions)
        alpha, sigma = alpha_sigma(log_snr_B)
        x_BCHW = z_BCHW * (alpha + sigma)
        if conditions.lowres_BCHW is None:
            return exact_denoiser(MEAN, STD * self.scale)(x_BCHW, log_snr_B)
        low = conditions.lowres_BCHW
        return low + exact_denoiser(0.0, STD * self.scale)(x_BCHW - alpha * low, log_snr_B)


def make_stage(model: nn.Module, low: int | None = None) -> LoadedStage:
    entry = StageEntry(name="base", resolution=16, low_resolution=low, path=".")
    return LoadedStage(entry, model, DiffusionConfig(schedule="flow", prediction="x0"))


def make_text(count: int = COUNT) -> EncodedPrompts:
    return pad_text([np.ones((2, 3), np.float32)] * count)


def make_images(mean: float = MEAN) -> Tensor:
    """Returns 8-bit pixels of normal numbers, in [-1, 1]."""
    x = (normal(COUNT, 3, 16, 16) * STD + mean).clamp(-1, 1)
    return ((x + 1) * 127.5).round() / 127.5 - 1


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {part: float(np.mean([row[part] for row in rows])) for part in rows[0]}


ENTROPY = math.log2(STD * math.sqrt(2 * math.pi * math.e)) + math.log2(127.5)


def test_bits_of_gaussian_pixels_are_their_entropy() -> None:
    bits = means(measure_likelihood(make_stage(ExactDenoiser()), make_text(), make_images(), None, CONFIG))
    assert bits["bound"] == pytest.approx(ENTROPY + 0.03, abs=0.05)  # the decoder takes 0.03
    assert bits["ODE"] == pytest.approx(bits["bound"], abs=0.05)
    levels = [part for part in bits if part.startswith("log-SNR")]
    assert len(levels) == 16 and levels[0].startswith("log-SNR -10.0 to") and levels[-1].endswith("to 11.1")
    parts = bits["prior"] + bits["reconstruction"] + sum(bits[part] for part in levels)
    assert parts == pytest.approx(bits["bound"], abs=1e-4)


def test_a_wrong_denoiser_needs_more_bits() -> None:
    wrong = means(measure_likelihood(make_stage(ExactDenoiser(2.0)), make_text(), make_images(), None, CONFIG))
    assert wrong["bound"] > ENTROPY + 0.15 and wrong["ODE"] > ENTROPY + 0.15


def test_the_small_image_is_given_without_noise() -> None:
    """Large pixels are within `STD` of a small image that is one grey: as many bits as around a known mean."""
    model = ExactDenoiser()
    small, large = torch.full((COUNT, 3, 4, 4), -0.2), make_images(-0.2)
    bits = means(measure_likelihood(make_stage(model, 4), make_text(), large, small, CONFIG))
    assert bits["bound"] == pytest.approx(ENTROPY + 0.03, abs=0.06)
    for call in model.calls:
        assert call.lowres_BCHW is not None and float((call.lowres_BCHW + 0.2).std()) < 0.02
        assert call.text_keep_B is None  # every image has its caption


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    stage, images = make_stage(ExactDenoiser()), make_images()
    whole = measure_likelihood(stage, make_text(), images, None, CONFIG)
    part = measure_likelihood(stage, make_text(2), images[3:5], None, CONFIG, first=3)
    for one, other in zip(part, whole[3:5], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_the_latent_may_have_more_noise() -> None:
    config = CONFIG.model_copy(update={"most_log_snr": 7.0})
    bits = means(measure_likelihood(make_stage(ExactDenoiser()), make_text(), make_images(), None, config))
    assert [part for part in bits if part.startswith("log-SNR")][-1].endswith("to 7.0")
    # Of the data's deviation 0.3 the latent's noise of 0.03 is a tenth: the decoder hardly knows less.
    assert bits["bound"] == pytest.approx(ENTROPY, abs=0.05) and bits["ODE"] == pytest.approx(bits["bound"], abs=0.05)
    higher = measure_likelihood(
        make_stage(ExactDenoiser()), make_text(), make_images(), None, CONFIG.model_copy(update={"most_log_snr": 99.0})
    )
    assert "log-SNR 9.8 to 11.1" in higher[0]


def test_without_steps_there_is_no_ode() -> None:
    config = LikelihoodConfig(levels=2, steps=0)
    rows = measure_likelihood(make_stage(ExactDenoiser()), make_text(), make_images(), None, config)
    assert "ODE" not in rows[0] and len(rows) == COUNT


def test_the_metric_is_there_if_it_was_requested() -> None:
    tables: list[dict[str, Any]] = [
        {"stage": "base", "images": [{"bound": 2.0}, {"bound": 3.0}]},
        {"stage": "sr", "images": []},
    ]
    likelihood = collect_likelihood(tables)
    values = Likelihood().compute(JudgedSamples([], likelihood=likelihood))
    assert list(values) == ["base: bound"] and values["base: bound"]["value"] == 2.5
    assert 2 <= values["base: bound"]["low"] <= 2.5 <= values["base: bound"]["high"] <= 3
    assert "likelihood" in compute_metrics(JudgedSamples([], likelihood=likelihood), CLIP)["more"]
    assert "more" not in compute_metrics(JudgedSamples([]), CLIP)
