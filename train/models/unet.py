"""The text-conditional U-Net of every cascade stage: the base model's layout (F.1) and Efficient U-Net's (F.2, F.3).

Sections are of arXiv 2205.11487. Shape legend: B batch, C channels, H W height and width, L caption tokens,
D text width, T context tokens, E width of the conditioning vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dataprep.schema import Config
from train.models.attention import COORDINATE_FEATURES, AttentionKind, ImageAttention, coordinates, zeroed
from train.models.blocks import CombineEmbeddings, ResBlock, StridedConv, UpsamplingConv
from train.models.conditioning import NoiseEmbedding, TextConditioner


class UNetConfig(Config):
    """Layout of one U-Net. Level i works at the image's size divided by ``strides[0] * ... * strides[i]``."""

    order: Literal["base", "efficient"] = Field(
        default="base",
        description="base: resample between levels, a skip a block; efficient: A.28/A.29, a skip a level",
    )
    image_channels: int = Field(default=3, ge=1, description="channels of the image")
    lowres: bool = Field(
        default=False, description="whether a low-resolution image is a second input (super-resolution)"
    )
    lowres_residual: bool = Field(
        default=False, description="the output is what to add to the low-resolution image; for prediction x0"
    )
    channels: int = Field(default=64, ge=8, description="channels of the first convolution")
    channel_mult: tuple[float, ...] = Field(
        default=(1, 2, 3, 4), strict=False, description="each level's channels / channels"
    )
    blocks: tuple[int, ...] = Field(default=(3, 3, 3, 3), strict=False, description="residual blocks of each level")
    strides: tuple[int, ...] = Field(
        default=(1, 2, 2, 2), strict=False, description="down-sampling on entering each level"
    )
    attention: tuple[AttentionKind, ...] = Field(
        default=("none", "joint", "joint", "joint"),
        strict=False,
        description="attention after the blocks of each level",
    )
    attention_every_block: bool = Field(
        default=True, description="attention after every block of a level; else after its last"
    )
    middle: bool = Field(default=True, description="whether block-attention-block stands between the two halves (base)")
    positions: bool = Field(default=False, description="tell features where in the image they are; not with crops")
    head_width: int = Field(default=64, ge=4, description="channels of an attention head")
    feed_forward: int = Field(
        default=0, ge=0, description="hidden width / channels of the network after attention; 0: none"
    )
    combine: Literal["block", "level"] = Field(
        default="block",
        description="what the condition scales and shifts: each block's second norm, or what enters a level (A.28)",
    )
    groups: int = Field(default=16, ge=1, description="groups of every GroupNorm, at most")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before each block's last convolution")
    text_dim: int = Field(default=128, ge=1, description="width of the text encoder's output")
    context_width: int = Field(default=128, ge=8, description="width of the caption tokens inside the U-Net")
    text_layers: int = Field(
        default=0, ge=0, description="transformer blocks over the caption tokens before they are used"
    )
    condition_width: int = Field(default=256, ge=8, description="width of noise embedding + pooled text")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in ("channel_mult", "blocks", "strides", "attention")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"one entry a level is needed in each of {lengths}; make them equally long")
        for name in ("channel_mult", "blocks", "strides"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} {list(getattr(self, name))} must be above 0 in every level")
        for width in self.level_channels():
            heads = max(1, width // self.head_width)
            if width % heads:
                raise ValueError(f"{width} channels do not split into {heads} heads; change head_width or channel_mult")
        if self.lowres_residual and not self.lowres:
            raise ValueError("lowres_residual needs a low-resolution input; set lowres: true, or leave it out")
        if self.context_width % 4:
            raise ValueError(f"context_width {self.context_width} must be a multiple of 4")
        return self

    def level_channels(self) -> list[int]:
        """Channels of each level."""
        return [round(self.channels * factor) for factor in self.channel_mult]

    def size_multiple(self) -> int:
        """Height and width of an image must be a multiple of this."""
        return math.prod(self.strides)

    def level_attention(self, level: int, count: int) -> list[AttentionKind]:
        """Attention after each of ``count`` blocks of a level."""
        kind: AttentionKind = self.attention[level]
        return [kind if self.attention_every_block or i == count - 1 else "none" for i in range(count)]

    def norm_groups(self, channels: int) -> int:
        """The largest divisor of ``channels`` that is at most ``groups``."""
        return max(groups for groups in range(1, self.groups + 1) if channels % groups == 0)


class Condition(NamedTuple):
    """Each block gets: the summed vector (B, E) after swish, the caption tokens (B, T, C), their mask (B, T)."""

    vector: Tensor
    text: Tensor
    mask: Tensor


class Stack(nn.Module):
    """One level's residual blocks on one side of the U, each with attention after it where there is one.

    ``takes[i]`` > 0 says that block i first receives a skip of so many channels, concatenated and scaled by 1/sqrt(2)
    (B.1). ``gives`` says after which blocks a skip is left behind. With ``combine: level`` the condition enters once,
    before the first block and after its skip (A.28, A.29).
    """

    def __init__(
        self,
        config: UNetConfig,
        channels_in: int,
        channels: int,
        kinds: Sequence[AttentionKind],
        takes: Sequence[int],
        gives: Literal["none", "last", "each"],
    ) -> None:
        super().__init__()
        self.takes, self.gives = tuple(takes), gives
        self.recompute = False
        self.combine = combine_embeddings(config, channels_in + takes[0]) if config.combine == "level" else None
        self.blocks, self.attentions = nn.ModuleList(), nn.ModuleList()
        for position, (kind, skip) in enumerate(zip(kinds, takes, strict=True)):
            self.blocks.append(res_block(config, (channels if position else channels_in) + skip, channels))
            self.attentions.append(nn.Identity() if kind == "none" else attention(config, channels, kind))

    def forward(self, h_BCHW: Tensor, condition: Condition, skips: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Applies the blocks; takes skips from the end of ``skips``, and gives those that it leaves behind.

        The list itself is not changed: wrappers that hook into modules, ZeRO-3 for one, pass on a copy.
        """
        skips = list(skips)
        left: list[Tensor] = []
        for block, layer, skip in zip(self.blocks, self.attentions, self.takes, strict=True):
            if skip:
                h_BCHW = torch.cat([h_BCHW, skips.pop() * 2**-0.5], dim=1)
            if self.combine is not None and block is self.blocks[0]:
                h_BCHW = self.combine(h_BCHW, condition.vector)
            if self.recompute and torch.is_grad_enabled():
                h_BCHW = checkpoint(_apply, block, layer, h_BCHW, condition, use_reentrant=False)
            else:
                h_BCHW = _apply(block, layer, h_BCHW, condition)
            if self.gives == "each":
                left.append(h_BCHW)
        if self.gives == "last":
            left.append(h_BCHW)
        return h_BCHW, left


def _apply(block: nn.Module, layer: nn.Module, h_BCHW: Tensor, condition: Condition) -> Tensor:
    """A residual block, then its attention where it has one."""
    h_BCHW = block(h_BCHW, condition.vector)
    if isinstance(layer, ImageAttention):
        h_BCHW = layer(h_BCHW, condition.text, condition.mask)
    return h_BCHW


def res_block(config: UNetConfig, channels_in: int, channels: int, **options: Any) -> ResBlock:
    """A ResBlock with the config's norms; both widths must share the number of groups."""
    groups = math.gcd(config.norm_groups(channels_in), config.norm_groups(channels))
    condition = config.condition_width if config.combine == "block" else 0
    return ResBlock(channels_in, channels, condition, groups, config.dropout, **options)


def combine_embeddings(config: UNetConfig, channels: int) -> CombineEmbeddings:
    """CombineEmbs with the config's sizes."""
    return CombineEmbeddings(channels, config.condition_width, config.norm_groups(channels))


def attention(config: UNetConfig, channels: int, kind: AttentionKind) -> ImageAttention:
    """An attention block with the config's sizes."""
    groups = config.norm_groups(channels)
    return ImageAttention(
        channels, config.head_width, config.context_width, kind, config.feed_forward, groups, config.positions
    )


class UNet(nn.Module):
    """Predicts eps, x0 or v (what it is trained for) of a noisy image, given its noise level and a caption."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        context, condition = config.context_width, config.condition_width
        self.noise = NoiseEmbedding(config.channels, condition)
        self.lowres_noise = NoiseEmbedding(config.channels, condition) if config.lowres else None
        self.text = TextConditioner(config.text_dim, context, config.text_layers, condition)
        self.stem = nn.Conv2d(config.image_channels * (2 if config.lowres else 1), config.channels, 3, padding=1)
        self.place = nn.Conv2d(COORDINATE_FEATURES, config.channels, 1) if config.positions else None
        self.shrink, self.down, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        self._build_levels()
        self.middle = self._middle() if config.middle else None
        self.norm_out = nn.GroupNorm(config.norm_groups(config.channels), config.channels)
        self.out = zeroed(nn.Conv2d(config.channels, config.image_channels, 3, padding=1))

    def _build_levels(self) -> None:
        config = self.config
        efficient, widths = config.order == "efficient", config.level_channels()
        skips: list[int] = []
        width_in = config.channels
        for level, (width, count, stride) in enumerate(zip(widths, config.blocks, config.strides, strict=True)):
            entry = width if efficient else width_in
            self.shrink.append(self._shrink(width_in, entry, stride))
            kinds = config.level_attention(level, count)
            self.down.append(Stack(config, entry, width, kinds, [0] * count, "last" if efficient else "each"))
            skips += [width] if efficient else [entry] + [width] * count
            width_in = width
        for level in reversed(range(len(widths))):
            count = config.blocks[level] + (0 if efficient else 1)
            takes = [skips.pop()] + [0] * (count - 1) if efficient else [skips.pop() for _ in range(count)]
            kinds = config.level_attention(level, count)
            self.up.append(Stack(config, width_in, widths[level], kinds, takes, "none"))
            # As BigGAN's generator does, what enters a larger level has that level's width already (F.1).
            width_in = widths[level - 1] if level else config.channels
            self.grow.append(self._grow(widths[level], width_in, config.strides[level]))

    def _middle(self) -> Stack:
        width = self.config.level_channels()[-1]
        kind = self.config.attention[-1]
        return Stack(self.config, width, width, ["joint" if kind == "none" else kind, "none"], [0, 0], "none")

    def _shrink(self, channels_in: int, channels: int, stride: int) -> nn.Module:
        if self.config.order == "efficient":
            return StridedConv(channels_in, channels, stride)
        if stride == 1:
            return nn.Identity()
        return res_block(self.config, channels_in, channels, resample="down", factor=stride)

    def _grow(self, channels_in: int, channels: int, stride: int) -> nn.Module:
        if self.config.order == "efficient":
            return UpsamplingConv(channels_in, channels, stride)
        if stride > 1:
            return res_block(self.config, channels_in, channels, resample="up", factor=stride)
        return nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(
        self,
        x_BCHW: Tensor,
        log_snr_B: Tensor,
        text_BLD: Tensor,
        text_mask_BL: Tensor,
        text_keep_B: Tensor | None = None,
        lowres_BCHW: Tensor | None = None,
        lowres_log_snr_B: Tensor | None = None,
    ) -> Tensor:
        """Noisy image -> prediction of the same shape.

        Args:
            x_BCHW: float, noisy image; clean images lie in [-1, 1]. H and W are multiples of ``size_multiple()``.
            log_snr_B: log(alpha^2 / sigma^2) of each image.
            text_BLD, text_mask_BL: the text encoder's output, and bool, True where a token is.
            text_keep_B: bool; False: unconditional, the caption is replaced by the learned null token. None: all True.
            lowres_BCHW, lowres_log_snr_B: for super-resolution, the low-resolution image already resized to H x W and
                noised, and the log-SNR of that noise.

        Raises:
            ValueError: a size that does not divide; a low-resolution input missing, or given where none belongs.
        """
        self._check(x_BCHW, lowres_BCHW, lowres_log_snr_B)
        text_BTC, mask_BT, vector_BE = self.text(text_BLD, text_mask_BL, text_keep_B)
        vector_BE = vector_BE + self.noise(log_snr_B)
        if self.lowres_noise is not None and lowres_BCHW is not None and lowres_log_snr_B is not None:
            vector_BE = vector_BE + self.lowres_noise(lowres_log_snr_B)
            x_BCHW = torch.cat([x_BCHW, lowres_BCHW], dim=1)
        condition = Condition(functional.silu(vector_BE), text_BTC, mask_BT)
        # Channels last: GroupNorm, attention and the convolutions on a CPU and on tensor cores are quicker so.
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        h_BCHW = self.stem(x_BCHW)
        if self.place is not None:
            h_BCHW = h_BCHW + self.place(coordinates(h_BCHW.shape[2], h_BCHW.shape[3], h_BCHW))
        h_BCHW = self._levels(h_BCHW, condition)
        output_BCHW: Tensor = self.out(functional.silu(self.norm_out(h_BCHW)))
        return output_BCHW + lowres_BCHW if self.config.lowres_residual and lowres_BCHW is not None else output_BCHW

    def enable_recompute(self) -> None:
        """From now on keep only each block's input for the backward pass, and compute the rest again there."""
        for module in self.modules():
            if isinstance(module, Stack):
                module.recompute = True

    def _check(self, x_BCHW: Tensor, lowres_BCHW: Tensor | None, lowres_log_snr_B: Tensor | None) -> None:
        multiple, size = self.config.size_multiple(), tuple(x_BCHW.shape[2:])
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"image of {size} pixels; height and width must be multiples of {multiple}")
        if self.config.lowres and (lowres_BCHW is None or lowres_log_snr_B is None):
            raise ValueError("a super-resolution U-Net needs lowres_BCHW and lowres_log_snr_B")
        if not self.config.lowres and lowres_BCHW is not None:
            raise ValueError("this U-Net takes no low-resolution image; set lowres: true in its config")

    def _levels(self, stem_BCHW: Tensor, condition: Condition) -> Tensor:
        """Stem features -> features of the same size and width, down and up the U."""
        efficient = self.config.order == "efficient"
        h_BCHW = stem_BCHW
        skips: list[Tensor] = []
        for shrink, stack in zip(self.shrink, self.down, strict=True):
            h_BCHW = resample(shrink, h_BCHW, condition)
            if not efficient:
                skips.append(h_BCHW)
            h_BCHW, left = stack(h_BCHW, condition, [])
            skips += left
        if self.middle is not None:
            h_BCHW, _ = self.middle(h_BCHW, condition, [])
        for stack, grow in zip(self.up, self.grow, strict=True):
            assert isinstance(stack, Stack)
            taken = len(skips) - sum(skip > 0 for skip in stack.takes)
            h_BCHW, _ = stack(h_BCHW, condition, skips[taken:])
            del skips[taken:]
            h_BCHW = resample(grow, h_BCHW, condition)
        # The base layout's last blocks have seen the stem as a skip; here it is what keeps full-resolution detail.
        return (h_BCHW + stem_BCHW) * 2**-0.5 if efficient else h_BCHW


def resample(layer: nn.Module, h_BCHW: Tensor, condition: Condition) -> Tensor:
    """Applies a level's resampling layer, which takes the condition where it is a residual block."""
    result: Tensor = layer(h_BCHW, condition.vector) if isinstance(layer, ResBlock) else layer(h_BCHW)
    return result
