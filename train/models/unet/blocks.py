"""Residual and resampling blocks of the U-Net.

Shape legend: B batch, C channels, H W height and width, E width of the conditioning vector.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.layers import zero_init

Resample = Literal["none", "down", "up"]


class CombineEmbeddings(nn.Module):
    """GroupNorm scaled and shifted by the condition: CombineEmbs (A.28, A.29) with the scale-shift norm of F.2."""

    def __init__(self, channels: int, condition_width: int, groups: int) -> None:
        super().__init__()
        self.norm, self.condition = nn.GroupNorm(groups, channels), nn.Linear(condition_width, 2 * channels)

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        scale, shift = self.condition(condition_BE)[:, :, None, None].chunk(2, dim=1)
        return self.norm(x_BCHW) * (1 + scale) + shift


class ResBlock(nn.Module):
    """GroupNorm-swish-conv3 twice plus a shortcut (A.27); the condition scales and shifts the second norm (F.1).

    With ``condition_width`` 0 the block equals A.27: the condition enters earlier, in CombineEmbs. ``resample`` changes
    the size by ``factor`` on both branches, as in BigGAN's blocks: mean pooling down, nearest neighbour up.
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
        self.conv_out = zero_init(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        h_BCHW = functional.silu(self.norm_in(x_BCHW))
        h_BCHW = self.conv_in(h_BCHW if isinstance(self.conv_in, DoublingConv) else self._resize(h_BCHW))
        h_BCHW = self.norm_out(h_BCHW)
        if self.condition is not None:
            scale, shift = self.condition(condition_BE)[:, :, None, None].chunk(2, dim=1)
            h_BCHW = h_BCHW * (1 + scale) + shift
        h_BCHW = self.conv_out(self.dropout(functional.silu(h_BCHW)))
        # A 1x1 convolution commutes with a resize, so run it at the smaller size.
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
    """3x3 convolution, padding 1, of the input doubled by nearest neighbour: (B, C, H, W) -> (B, C', 2H, 2W).

    Sub-pixel form, 4/9 of the operations: each pixel of the doubled image depends on 2 x 2 input pixels, not 3 x 3.
    So each of the four positions within a 2 x 2 output block has its own 2x2 kernel of summed weights.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight = _sum_pairs(_sum_pairs(self.weight, 2), 4)  # (C', C, 3, 3) -> (C', 2, C, 2, 3) -> (C', 2, 2, C, 2, 2)
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        positions = functional.conv2d(x_BCHW, weight.flatten(0, 2), bias, padding=1)
        # The second position comes first, where its kernel starts; crop the outer ring, which is surplus.
        return functional.pixel_shuffle(positions, 2)[:, :, 1:-1, 1:-1].contiguous(memory_format=torch.channels_last)


def _sum_pairs(weight: Tensor, dim: int) -> Tensor:
    """Sums kernels of size 3 along ``dim`` to size 2, for the second and the first position, stacked on a new axis.

    The first position covers its left neighbour and its own pixel twice; the second its own twice and the right one.
    """
    left, own, right = weight.unbind(dim)
    return torch.stack([torch.stack([left + own, right], dim), torch.stack([left, own + right], dim)], dim // 2)


class StridedConv(nn.Module):
    """3x3 convolution that divides H and W by ``factor`` (first layer of a DBlock, A.28)."""

    def __init__(self, channels_in: int, channels: int, factor: int) -> None:
        super().__init__()
        # Above a factor of 3 a 3x3 kernel would skip pixels, so the kernel grows with it.
        kernel = max(3, factor)
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride=factor, padding=1 if kernel == 3 else 0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(x_BCHW)


class UpsamplingConv(nn.Module):
    """1x1-to-sub-pixel convolution that multiplies H and W by ``factor`` (last layer of a UBlock, A.29).

    The convolution runs at the small size: 1 / factor^2 of the operations of resizing first.
    """

    def __init__(self, channels_in: int, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels_in, channels * factor**2, 1)
        # Equal weights for all sub-pixels: starts as a nearest-neighbour resize, without checkerboard artefacts.
        for parameter in self.conv.parameters():
            parameter.data = parameter.data[:: factor**2].repeat_interleave(factor**2, dim=0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.conv(x_BCHW), self.factor)
