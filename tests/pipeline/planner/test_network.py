"""Operations and activations of the real networks, counted without computing, against counts of real steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.planner.network import PROBE, count_forward_flops, make_step_inputs, measure_peak_bytes, trace_activations
from pipeline.planner.training import count_trained_parameters
from train.engine import enable_recompute
from train.models.adapters.config import AdapterConfig
from train.models.adapters.lora import add_lora
from train.models.backbones import build_denoiser, denoiser_config

PRESETS = {"micro-base": 16, "tiny-sr64": 32, "dit-micro-base": 16, "dit-micro-sr": 32}


@pytest.mark.parametrize("preset", PRESETS)
def test_an_update_is_three_forward_passes(preset: str) -> None:
    layout, size = denoiser_config(preset), PRESETS[preset]
    net, inputs = build_denoiser(layout), make_step_inputs(layout, 2, size, 12, torch.float32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(*inputs).square().mean().backward()
    assert 3 * 2 * count_forward_flops(layout, size, 12) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_without_data_are_those_with_data(preset: str, recompute: bool) -> None:
    layout, size = denoiser_config(preset), PRESETS[preset]
    net = build_denoiser(layout)
    if recompute:
        enable_recompute(net)
    real = measure_peak_bytes(net, make_step_inputs(layout, PROBE, size, 12, torch.float32))
    followed = trace_activations(layout, size, 12, "fp32", recompute, False)
    assert followed.of(PROBE) == pytest.approx(real, rel=0.02)


def test_recomputing_and_bf16_take_less_and_autocast_more() -> None:
    layout = denoiser_config("tiny-sr64")
    plain, half = (trace_activations(layout, 32, 12, precision, False, False) for precision in ("fp32", "bf16"))
    recomputed = trace_activations(layout, 32, 12, "fp32", True, False)
    cast = trace_activations(layout, 32, 12, "bf16", False, True)
    assert half.bytes_per_sample < 0.6 * plain.bytes_per_sample
    assert recomputed.bytes_per_sample < 0.7 * plain.bytes_per_sample
    assert cast.fixed > 0
    assert half.bytes_per_sample < cast.bytes_per_sample


def test_gradients_are_let_go_and_hooks_removed() -> None:
    layout = denoiser_config("micro-base")
    net = build_denoiser(layout)
    measure_peak_bytes(net, make_step_inputs(layout, 1, 16, 4, torch.float32))
    assert all(param.grad is None for param in net.parameters())
    net(*make_step_inputs(layout, 1, 16, 4, torch.float32)).sum().backward()
    assert any(param.grad is not None for param in net.parameters())


def test_beside_an_adapter_weights_are_frozen_and_the_backward_pass_costs_about_half() -> None:
    layout, adapter = denoiser_config("tiny-sr64"), AdapterConfig(rank=4)
    net, inputs = build_denoiser(layout), make_step_inputs(layout, 2, 32, 12, torch.float32)
    whole, frozen = sum(param.numel() for param in net.parameters()), count_trained_parameters(layout, adapter)
    traced = trace_activations(layout, 32, 12, "fp32", False, False, adapter)
    assert traced.frozen == whole and 0 < frozen < whole / 4
    assert (
        traced.gradients == 4 * frozen and traced.floor < trace_activations(layout, 32, 12, "fp32", False, False).floor
    )
    add_lora(net, adapter)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(*inputs).square().mean().backward()
    assert 2 * 2 * count_forward_flops(layout, 32, 12) == pytest.approx(counter.get_total_flops(), rel=0.25)
