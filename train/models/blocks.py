"""Residual and resampling blocks of the U-Net.

Shape legend: B batch, C channels, H W height and width, E width of the conditioning vector.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.attention import zeroed

Resample = Literal["none", "down", "up"]


class CombineEmbeddings(nn.Module):
    """GroupNorm, scaled and shifted by the condition: CombineEmbs of A.28 and A.29 with F.2's scale-shift norm."""

    def __init__(self, channels: int, condition_width: int, groups: int) -> None:
        super().__init__()
        self.norm, self.condition = nn.GroupNorm(groups, channels), nn.Linear(condition_width, 2 * channels)

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        scale, shift = self.condition(condition_BE)[:, :, None, None].chunk(2, dim=1)
        return self.norm(x_BCHW) * (1 + scale) + shift


class ResBlock(nn.Module):
    """GroupNorm-swish-conv3 twice plus a shortcut (A.27); the second norm is scaled and shifted by the condition (F.1).

    With ``condition_width`` 0 the block is A.27's to the letter: the condition has entered before, in CombineEmbs.
    ``resample`` changes the size by ``factor`` inside the block, on both branches, as BigGAN's blocks do: mean pooling
    down, nearest neighbour up.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        condition_width: int,
        groups: int,
        dropout: float = 0.0,
        resample: Resample = "none",
        factor: int = 2,
    ) -> None:
        super().__init__()
        self.resample, self.factor = resample, factor
        self.norm_in = nn.GroupNorm(groups, channels_in)
        doubles = resample == "up" and factor == 2
        self.conv_in = (DoublingConv if doubles else nn.Conv2d)(channels_in, channels, 3, padding=1)
        self.condition = nn.Linear(condition_width, 2 * channels) if condition_width else None
        self.norm_out, self.dropout = nn.GroupNorm(groups, channels), nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        h_BCHW = functional.silu(self.norm_in(x_BCHW))
        h_BCHW = self.conv_in(h_BCHW if isinstance(self.conv_in, DoublingConv) else self._resize(h_BCHW))
        h_BCHW = self.norm_out(h_BCHW)
        if self.condition is not None:
            scale, shift = self.condition(condition_BE)[:, :, None, None].chunk(2, dim=1)
            h_BCHW = h_BCHW * (1 + scale) + shift
        h_BCHW = self.conv_out(self.dropout(functional.silu(h_BCHW)))
        # A 1x1 convolution and a resize may change places: the one that shrinks goes first.
        if self.resample == "up":
            return self._resize(self.shortcut(x_BCHW)) + h_BCHW
        return self.shortcut(self._resize(x_BCHW)) + h_BCHW

    def _resize(self, x_BCHW: Tensor) -> Tensor:
        if self.resample == "down":
            return functional.avg_pool2d(x_BCHW, self.factor)
        return (
            functional.interpolate(x_BCHW, scale_factor=self.factor, mode="nearest")
            if self.resample == "up"
            else x_BCHW
        )


class DoublingConv(nn.Conv2d):
    """3x3 convolution, padded by 1, of what comes in doubled by nearest neighbour: (B, C, H, W) -> (B, C', 2H, 2W).

    In sub-pixel form, with 4/9 of the work: a pixel of the doubled image sees 2 x 2 different pixels, not 3 x 3; so
    each of its four places in a pair of rows and columns has a 2x2 kernel, with the weights that fall on one summed.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight = _pairs(_pairs(self.weight, 2), 4)  # (C', C, 3, 3) -> (C', 2, C, 2, 3) -> (C', 2, 2, C, 2, 2)
        assert self.bias is not None
        places = functional.conv2d(x_BCHW, weight.flatten(0, 2), self.bias.repeat_interleave(4), padding=1)
        # The second place is put before the first, and so lies where its kernel begins; what is over is the outer ring.
        return functional.pixel_shuffle(places, 2)[:, :, 1:-1, 1:-1].contiguous(memory_format=torch.channels_last)


def _pairs(weight: Tensor, dim: int) -> Tensor:
    """Kernels of 3 along ``dim`` -> of 2, for the second and the first place: a new axis before the input channels.

    The first place sees its left neighbour and, twice, its own pixel; the second its own, twice, and the right one.
    """
    left, own, right = weight.unbind(dim)
    return torch.stack([torch.stack([left + own, right], dim), torch.stack([left, own + right], dim)], dim // 2)


class StridedConv(nn.Module):
    """3x3 convolution that shrinks H and W by ``factor`` (the first layer of an Efficient U-Net's DBlock, A.28)."""

    def __init__(self, channels_in: int, channels: int, factor: int) -> None:
        super().__init__()
        # With a factor above 3 a 3x3 kernel would skip pixels; the kernel then grows to cover them all.
        kernel = max(3, factor)
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride=factor, padding=1 if kernel == 3 else 0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(x_BCHW)


class UpsamplingConv(nn.Module):
    """1x1-to-sub-pixel convolution that grows H and W by ``factor`` (the last layer of a UBlock, A.29).

    Sub-pixel form, that is, the convolution runs at the small size: 1 / factor^2 of the work of resizing first.
    """

    def __init__(self, channels_in: int, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels_in, channels * factor**2, 1)
        # Each sub-pixel starts with the same weights, i.e. as a nearest-neighbour resize: no checkerboard at the start.
        for parameter in self.conv.parameters():
            parameter.data = parameter.data[:: factor**2].repeat_interleave(factor**2, dim=0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.conv(x_BCHW), self.factor)
