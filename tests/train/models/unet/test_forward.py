"""The whole forward pass of a U-Net without attention, against one written down from the paper, by weight name.

Sections are of arXiv 2205.11487: skips times 1/sqrt(2) (B.1), scale-shift norm (F.1, F.2), blocks (A.27 to A.29).
"""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers.unets import build_awake, make_inputs, predict
from train.models.unet.config import UNetConfig
from train.models.unet.unet import UNet

Weights = dict[str, Tensor]


def make_config(order: Literal["base", "efficient"], combine: Literal["block", "level"]) -> UNetConfig:
    strides = (1, 2) if order == "base" else (2, 2)
    return UNetConfig(
        order=order,
        combine=combine,
        channels=8,
        channel_mult=(1, 2),
        blocks=(1, 2),
        strides=strides,
        attention=("none", "none"),
        middle=False,
        groups=4,
        text_dim=12,
        context_width=8,
        condition_width=16,
        dropout=0.3,
    )


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """GroupNorm of four groups, as widths of 8 and more are split here."""
    parts = x.reshape(x.shape[0], 4, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return parts.view_as(x) * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def conv(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    return functional.conv2d(x, weight, weights[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)


def modulate(weights: Weights, name: str, x: Tensor, vector: Tensor) -> Tensor:
    """(1 + scale) x + shift, both linear in the condition."""
    scale, shift = functional.linear(vector, weights[f"{name}.weight"], weights[f"{name}.bias"]).chunk(2, dim=1)
    return (1 + scale)[:, :, None, None] * x + shift[:, :, None, None]


def res_block(weights: Weights, name: str, x: Tensor, vector: Tensor, resample: str = "none") -> Tensor:
    def resize(h: Tensor) -> Tensor:
        if resample == "down":
            return functional.avg_pool2d(h, 2)
        return h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if resample == "up" else h

    h = conv(weights, f"{name}.conv_in", resize(functional.silu(norm(weights, f"{name}.norm_in", x))))
    h = norm(weights, f"{name}.norm_out", h)
    if f"{name}.condition.weight" in weights:
        h = modulate(weights, f"{name}.condition", h, vector)
    h = conv(weights, f"{name}.conv_out", functional.silu(h))
    x = resize(x)
    return (conv(weights, f"{name}.shortcut", x) if f"{name}.shortcut.weight" in weights else x) + h


def stack(weights: Weights, name: str, x: Tensor, vector: Tensor, skips: list[Tensor]) -> list[Tensor]:
    """All outputs of a level's blocks; ``skips``, if any, go to its first blocks."""
    outputs: list[Tensor] = []
    for index in range(8):
        if f"{name}.blocks.{index}.norm_in.weight" not in weights:
            return outputs
        if index < len(skips):
            x = torch.cat([x, skips[index] / math.sqrt(2)], dim=1)
        if index == 0 and f"{name}.combine.norm.weight" in weights:
            x = modulate(weights, f"{name}.combine.condition", norm(weights, f"{name}.combine.norm", x), vector)
        x = res_block(weights, f"{name}.blocks.{index}", x, vector)
        outputs.append(x)
    raise AssertionError(name)


def base_levels(weights: Weights, stem: Tensor, vector: Tensor) -> Tensor:
    """F.1: levels of 1 and 2 blocks; on the way up one block more, each with a skip."""
    first = stack(weights, "down.0", stem, vector, [])
    shrunk = res_block(weights, "shrink.1", first[-1], vector, "down")
    second = stack(weights, "down.1", shrunk, vector, [])
    up = stack(weights, "up.0", second[-1], vector, [second[1], second[0], shrunk])[-1]
    grown = res_block(weights, "grow.0", up, vector, "up")
    return stack(weights, "up.1", grown, vector, [first[0], stem])[-1]


def efficient_levels(weights: Weights, stem: Tensor, vector: Tensor) -> Tensor:
    """A.28, A.29: strided convolution, blocks; blocks, sub-pixel convolution; one skip per level; the stem added."""
    first = stack(weights, "down.0", conv(weights, "shrink.0.conv", stem, 2), vector, [])[-1]
    second = stack(weights, "down.1", conv(weights, "shrink.1.conv", first, 2), vector, [])[-1]
    up = stack(weights, "up.0", second, vector, [second])[-1]
    up = functional.pixel_shuffle(conv(weights, "grow.0.conv", up), 2)
    up = stack(weights, "up.1", up, vector, [first])[-1]
    return (functional.pixel_shuffle(conv(weights, "grow.1.conv", up), 2) + stem) / math.sqrt(2)


@pytest.mark.parametrize("combine", ["block", "level"])
@pytest.mark.parametrize("order", ["base", "efficient"])
def test_the_forward_pass_is_the_papers(
    order: Literal["base", "efficient"], combine: Literal["block", "level"]
) -> None:
    config = make_config(order, combine)
    model: UNet = build_awake(config).double()  # also sets evaluation mode: no dropout
    given = {
        name: value if value.dtype == torch.bool else value.double() for name, value in make_inputs(config).items()
    }
    weights: Weights = dict(model.state_dict())
    pooled = model.text(given["text_BLD"], given["text_mask_BL"], None)[2]
    vector = functional.silu(pooled + model.noise(given["log_snr_B"]))
    stem = conv(weights, "stem", given["x_BCHW"])
    h = (base_levels if order == "base" else efficient_levels)(weights, stem, vector)
    expected = conv(weights, "out", functional.silu(norm(weights, "norm_out", h)))
    torch.testing.assert_close(predict(model, given), expected, rtol=1e-8, atol=1e-8)
    assert float(expected.std()) > 0.01
