"""The whole forward pass of a diffusion transformer, against one written down from the papers, by weight name."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers.dits import build_awake_dit
from tests.helpers.unets import make_inputs, predict
from train.models.dit.attention import rotary_2d
from train.models.dit.config import DiTConfig
from train.models.layers import coordinate_features

Weights = dict[str, Tensor]
PATCH, WIDTH = 2, 16


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def block(weights: Weights, name: str, model: torch.nn.Module, x: Tensor, vector: Tensor, text: Tensor) -> Tensor:
    """adaLN-Zero (Peebles and Xie 2023, section 3.2); cross-attention without a gate (PixArt, figure 4)."""
    if f"{name}.modulation.weight" in weights:
        six = linear(weights, f"{name}.modulation", vector)
    else:
        six = linear(weights, "modulation", vector) + weights[f"{name}.offset"]
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (part[:, None] for part in six.split(WIDTH, dim=1))
    rotary = rotary_2d(4, 4, 8, x)
    cross = f"{name}.cross.query.weight" in weights
    attention, h = model.get_submodule(f"{name}.attention"), norm(x) * (1 + scale) + shift
    x = x + gate * attention(h, rotary, None if cross else text, None)
    if cross:
        h = norm(x) * weights[f"{name}.norm_cross.weight"]
        x = x + model.get_submodule(f"{name}.cross")(h, None, text, None)
    first, second = linear(weights, f"{name}.feed_forward.hidden", norm(x) * (1 + scale_mlp) + shift_mlp).chunk(2, -1)
    return x + gate_mlp * linear(weights, f"{name}.feed_forward.out", first * first.sigmoid() * second)


def cut(image: Tensor) -> Tensor:
    """(B, C, 8, 8) -> (B, 16, C * 4), patches from left to right, then down."""
    rows = [
        image[:, :, y : y + PATCH, x : x + PATCH].flatten(1) for y in range(0, 8, PATCH) for x in range(0, 8, PATCH)
    ]
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("modulation", ["block", "shared"])
@pytest.mark.parametrize("attention", ["joint", "cross"])
def test_the_forward_pass_is_the_papers(
    attention: Literal["joint", "cross"], modulation: Literal["block", "shared"]
) -> None:
    config = DiTConfig(
        patch=PATCH,
        width=WIDTH,
        depth=2,
        head_width=8,
        bottleneck=5,
        attention=attention,
        modulation=modulation,
        text_dim=12,
        context_width=8,
        condition_width=16,
        lowres=True,
        lowres_residual=True,
    )
    model = build_awake_dit(config).double()
    inputs = make_inputs(config, size=8)
    given = {name: value if value.dtype == torch.bool else value.double() for name, value in inputs.items()}
    weights: Weights = dict(model.state_dict())
    text, _, pooled = model.text(given["text_BLD"], given["text_mask_BL"], None)
    assert model.lowres_noise is not None
    vector = functional.silu(pooled + model.noise(given["log_snr_B"]) + model.lowres_noise(given["lowres_log_snr_B"]))
    x = cut(torch.cat([given["x_BCHW"], given["lowres_BCHW"]], dim=1))
    x = linear(weights, "embed", linear(weights, "narrow", x))
    x = x + linear(weights, "place", coordinate_features(4, 4, x).flatten(2).mT)
    for number in range(2):
        x = block(weights, f"blocks.{number}", model, x, vector, text)
    shift, scale = (part[:, None] for part in linear(weights, "modulation_out", vector).chunk(2, dim=1))
    patches = linear(weights, "out", norm(x) * (1 + scale) + shift)
    expected = patches + cut(given["lowres_BCHW"])
    torch.testing.assert_close(cut(predict(model, given)), expected, rtol=1e-8, atol=1e-8)
    assert float((expected - cut(given["lowres_BCHW"])).std()) > 0.01
