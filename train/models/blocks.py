"""Residual and resampling blocks of the U-Net.

Shape legend: B batch, C channels, H W height and width, E width of the conditioning vector.
"""

from __future__ import annotations

from typing import Literal

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
        self.norm_in, self.conv_in = nn.GroupNorm(groups, channels_in), nn.Conv2d(channels_in, channels, 3, padding=1)
        self.condition = nn.Linear(condition_width, 2 * channels) if condition_width else None
        self.norm_out, self.dropout = nn.GroupNorm(groups, channels), nn.Dropout(dropout)
        self.conv_out = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x_BCHW: Tensor, condition_BE: Tensor) -> Tensor:
        h_BCHW = self.conv_in(self._resize(functional.silu(self.norm_in(x_BCHW))))
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
