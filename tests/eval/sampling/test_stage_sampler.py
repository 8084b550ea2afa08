"""Sampling with one stage: padded prompts, and a sampler that is registered from outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from eval.sampling.config import SamplingConfig, StageEntry
from eval.sampling.stage_sampler import LoadedStage, SamplerInputs, pad_text, sample_stage
from train.diffusion.config import DiffusionConfig
from train.diffusion.guidance import PredictX0
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


def test_pad_text() -> None:
    text, mask = pad_text([np.ones((2, 3)), np.ones((0, 3)), np.ones((1, 3))])
    assert text.shape == (3, 2, 3) and mask.tolist() == [[True, True], [False, False], [True, False]]
    assert float(text[1].abs().max()) == 0
    assert pad_text([np.ones((0, 3))])[0].shape == (1, 1, 3)
