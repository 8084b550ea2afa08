"""Operations of a forward pass, counted on shapes, against a count of the pass itself."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.unets import make_inputs, predict
from train.flops import CallRecorder, count_flops
from train.models.backbones import build_denoiser, denoiser_config


@pytest.mark.parametrize("preset", ["micro-base", "micro-sr", "dit-micro-base"])
def test_the_count_is_that_of_the_pass_and_leaves_the_random_numbers(preset: str) -> None:
    config = denoiser_config(preset)
    model, inputs = build_denoiser(config), make_inputs(config)
    recorder = CallRecorder(model)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = predict(recorder, inputs)  # type: ignore[arg-type]
    assert output.shape == inputs["x_BCHW"].shape and not output.is_meta
    state = torch.get_rng_state()
    assert count_flops(lambda: build_denoiser(config), recorder.calls) == counter.get_total_flops() > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert recorder.calls[0][0][0].is_meta  # no data is kept


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


def test_a_model_that_cannot_be_counted_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    recorder = CallRecorder(DataDependent())
    assert recorder(torch.ones(3)).shape == (3,)
    with caplog.at_level(logging.WARNING):
        assert count_flops(DataDependent, recorder.calls) is None
    assert "no MFU is logged" in caplog.text
