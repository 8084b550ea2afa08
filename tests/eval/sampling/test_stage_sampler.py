"""Sampling with one stage: what its network is given, padded prompts, a sampler that is registered from outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from eval.sampling.config import SamplingConfig, StageEntry
from eval.sampling.stage_sampler import LoadedStage, SamplerInputs, StageEdit, pad_text, sample_stage
from tests.helpers.recording import (
    RecordingDenoiser,
    assert_standard_normal,
    correlation,
    find_noise,
    resize_bilinear,
)
from train.diffusion.config import DiffusionConfig
from train.diffusion.guidance import PredictX0
from train.diffusion.objective import log_snr_at_level, log_snr_at_time
from train.diffusion.samplers import SAMPLERS, Noise, log_snr_of_step
from train.models.base import Conditions, DenoiserConfig


class HalvingDenoiser(nn.Module):
    """Predicts half of the noisy image, as x_0."""

    config = DenoiserConfig()

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        return x_BCHW / 2


def sample_last(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """Denoises once, at the last noise level."""
    return denoise(x_BCHW, log_snr_of_step(log_snrs, len(log_snrs) - 2, x_BCHW))


def test_a_new_sampler_is_a_choice_of_the_config_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="'last' is unknown; take one of ddpm, ddim, dpmpp_2m, dpmpp_2m_sde"):
        SamplingConfig(sampler="last")
    monkeypatch.setitem(SAMPLERS, "last", sample_last)
    stage = LoadedStage(
        StageEntry(name="base", resolution=4, path="."), HalvingDenoiser(), DiffusionConfig(prediction="x0")
    )
    inputs = SamplerInputs(pad_text([np.ones((1, 3))]))
    settings = SamplingConfig(sampler="last", guidance=1, threshold="none", steps=3)
    image, again = (sample_stage(stage, settings, inputs, [(0, 0)]) for _ in range(2))
    assert image.shape == (1, 3, 4, 4) and bool(torch.equal(image, again))
    assert 0.3 < float(image.abs().mean()) < 0.5  # halved noise: 0.399 on average, clipped at 1


class FlowDenoiser(nn.Module):
    """Predicts the exact velocity of data ~ N(0.2, 0.1^2) from z_t = (1 - t) x_0 + t eps."""

    config = DenoiserConfig()

    def forward(self, z_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        t = (log_snr_B / -2).sigmoid().view(-1, 1, 1, 1)
        gain = (1 - t) * 0.1**2 / (((1 - t) * 0.1) ** 2 + t**2)
        return (z_BCHW - 0.2 - gain * (z_BCHW - (1 - t) * 0.2)) / t


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_flow_network_is_given_the_linear_path(sampler: str) -> None:
    diffusion = DiffusionConfig(schedule="flow", prediction="velocity")
    stage = LoadedStage(StageEntry(name="base", resolution=32, path="."), FlowDenoiser(), diffusion)
    settings = SamplingConfig(sampler=sampler, spacing="log_snr", guidance=1, threshold="none", steps=200)
    x = sample_stage(stage, settings, SamplerInputs(pad_text([np.ones((1, 3))] * 8)), [(0, row) for row in range(8)])
    assert float(x.mean()) == pytest.approx(0.2, abs=0.005) and float(x.std()) == pytest.approx(0.1, abs=0.005)


def test_pad_text() -> None:
    text, mask = pad_text([np.ones((2, 3)), np.ones((0, 3)), np.ones((1, 3))])
    assert (
        text.shape == (3, 2, 3) and mask is not None and mask.tolist() == [[True, True], [False, False], [True, False]]
    )
    assert float(text[1].abs().max()) == 0
    assert pad_text([np.ones((0, 3))])[0].shape == (1, 1, 3)


SEEDS = [(5, index) for index in range(64)]


def sample_upscaled(level: float, max_level: float = 1.0, guidance: float = 1.0) -> tuple[RecordingDenoiser, Tensor]:
    """Samples 64 images of 16 pixels from small ones of 4: what the stub recorded, and the small images."""
    model = RecordingDenoiser(DenoiserConfig(lowres=True))
    stage = LoadedStage(
        StageEntry(name="sr", resolution=16, low_resolution=4, path="."),
        model,
        DiffusionConfig(lowres_max_level=max_level),
    )
    small = torch.rand(len(SEEDS), 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    inputs = SamplerInputs(pad_text([np.full((2, 3), index) for index in range(len(SEEDS))]), lowres_BCHW=small)
    sample_stage(stage, SamplingConfig(lowres_level=level, guidance=guidance, steps=2), inputs, SEEDS)
    return model, small


@pytest.mark.parametrize("level", [0.1, 0.3, 0.9])
def test_the_small_image_has_the_noise_that_is_told(level: float) -> None:
    model, small = sample_upscaled(level, max_level=0.5)
    resized = resize_bilinear(small, 16)
    config = DiffusionConfig()
    expected = float(log_snr_at_level(config, torch.tensor([min(level, 0.5)])))  # never above the training's levels
    start, start_log_snr, first = model.calls[0]
    assert len(model.calls) == 2 and float(start_log_snr[0]) < -8
    for x, _, conditions in model.calls:
        told, given = conditions.lowres_log_snr_B, conditions.lowres_BCHW
        assert told is not None and given is not None and first.lowres_BCHW is not None and x.shape == given.shape
        assert told.tolist() == pytest.approx([expected] * len(SEEDS))
        noise = find_noise(given, resized, told)
        assert_standard_normal(noise)
        assert correlation(noise, start) < 0.02
        assert torch.equal(given, first.lowres_BCHW)  # the same noise at every step
    assert_standard_normal(start)


def test_the_small_image_without_noise_is_resized_bilinearly() -> None:
    model, small = sample_upscaled(0.0)
    given = model.calls[0][2].lowres_BCHW
    assert given is not None
    difference = given - resize_bilinear(small, 16)
    assert float(difference.abs().max()) < 0.08 and float(difference.std()) < 0.014  # sigma at level 0 is 0.0125


def test_guidance_asks_with_and_without_the_caption_for_the_same_inputs() -> None:
    model, _ = sample_upscaled(0.2, guidance=3.0)
    rows = len(SEEDS)
    for x, log_snr, conditions in model.calls:
        assert conditions.text_keep_B is not None and conditions.text_keep_B.tolist() == [True] * rows + [False] * rows
        for part in (x, log_snr, conditions.lowres_BCHW, conditions.lowres_log_snr_B, conditions.text_BLD):
            assert part is not None and torch.equal(part[:rows], part[rows:])
        assert conditions.text_BLD is not None
        assert conditions.text_BLD[:rows, 0, 0].tolist() == list(range(rows))


def test_the_network_is_told_the_noise_of_an_edited_image() -> None:
    model, image = RecordingDenoiser(), torch.rand(1, 3, 16, 16) * 2 - 1
    diffusion = DiffusionConfig()
    stage = LoadedStage(StageEntry(name="base", resolution=16, path="."), model, diffusion)
    inputs = SamplerInputs(pad_text([np.ones((2, 3))] * len(SEEDS)), edit=StageEdit(image))
    sample_stage(stage, SamplingConfig(strength=0.4, guidance=1, steps=10), inputs, SEEDS)
    assert len(model.calls) == 4
    x, told, _ = model.calls[0]
    torch.testing.assert_close(told, log_snr_at_time(diffusion, torch.full((len(SEEDS),), 0.4)))
    assert_standard_normal(find_noise(x, image, told))


def test_images_are_clipped_without_a_threshold_too() -> None:
    model = HalvingDenoiser()
    model.forward = lambda x_BCHW, *_: x_BCHW * 9  # type: ignore[method-assign]
    stage = LoadedStage(StageEntry(name="base", resolution=4, path="."), model, DiffusionConfig(prediction="x0"))
    settings = SamplingConfig(guidance=1, threshold="none", steps=1, sampler="ddim")
    image = sample_stage(stage, settings, SamplerInputs(pad_text([np.ones((1, 3))])), [(0, 0)])
    assert float(image.max()) == 1 and float(image.min()) == -1


class EncodingDenoiser(RecordingDenoiser):
    """Also counts how often its text is encoded."""

    encoded = 0

    def encode_text(self, conditions: Conditions) -> Conditions:
        self.encoded += 1
        return conditions


@pytest.mark.parametrize(("guidance", "every"), [(3.0, 1), (3.0, 2), (1.0, 1)])
def test_text_is_encoded_once_a_batch(guidance: float, every: int) -> None:
    model = EncodingDenoiser()
    stage = LoadedStage(StageEntry(name="base", resolution=16, path="."), model, DiffusionConfig())
    settings = SamplingConfig(guidance=guidance, guidance_every=every, steps=6)
    sample_stage(stage, settings, SamplerInputs(pad_text([np.ones((2, 3))] * 2)), [(0, 0), (0, 1)])
    assert len(model.calls) == 6 and model.encoded == every  # once with and, if asked so, once without the other half
    rows = [len(x) for x, _, _ in model.calls]
    assert rows == ([4, 2] * 3 if every == 2 else [4 if guidance > 1 else 2] * 6)
