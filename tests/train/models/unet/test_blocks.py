"""The U-Net's blocks against direct computations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from train.models.unet.blocks import DoublingConv, ResBlock


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 5)])
def test_the_sub_pixel_form_is_the_convolution_of_the_doubled_image(height: int, width: int) -> None:
    torch.manual_seed(0)
    conv = DoublingConv(5, 3, 3, padding=1).double()
    x = torch.randn(2, 5, height, width, dtype=torch.float64, requires_grad=True)
    doubled = functional.interpolate(x, scale_factor=2, mode="nearest")
    plain = functional.conv2d(doubled, conv.weight, conv.bias, padding=1)
    found = conv(x)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    seen = torch.randn_like(plain)
    assert conv.bias is not None
    inputs = (x, conv.weight, conv.bias)
    gradients = [torch.autograd.grad((value * seen).sum(), inputs) for value in (found, plain)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_dropout_is_in_front_of_the_last_convolution_and_in_training_alone() -> None:
    torch.manual_seed(0)
    block = ResBlock(8, 16, 6, 2, dropout=0.75)
    seen: list[torch.Tensor] = []
    block.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, condition = torch.randn(4, 8, 16, 16), torch.randn(4, 6)
    for training in (True, False):
        block.train(training)(x, condition)
    dropped, whole = seen
    kept = dropped != 0
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.02) and bool((whole != 0).all())
    torch.testing.assert_close(dropped[kept], 4 * whole[kept])


def test_a_doubling_block_has_the_parameters_of_a_plain_one() -> None:
    doubling, plain = ResBlock(8, 4, 6, 2, resample="up"), ResBlock(8, 4, 6, 2, resample="up", factor=4)
    shapes = [{name: tuple(value.shape) for name, value in block.state_dict().items()} for block in (doubling, plain)]
    assert shapes[0] == shapes[1]
    assert isinstance(doubling.conv_in, DoublingConv) and type(plain.conv_in) is nn.Conv2d
    condition, x = torch.zeros(1, 6), torch.randn(1, 8, 2, 3)
    assert doubling(x, condition).shape == (1, 4, 4, 6) and plain(x, condition).shape == (1, 4, 8, 12)
