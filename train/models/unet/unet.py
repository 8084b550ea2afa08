"""Text-conditional U-Net: the layout of the base model (F.1) and of Efficient U-Net (F.2, F.3).

Sections are of arXiv 2205.11487. Shape legend: B batch, C channels, H W height and width, L caption tokens,
D text width, T context tokens, E width of the conditioning vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.models.base import Conditions, check_conditions
from train.models.conditioning import ImageEmbeddingConditioner, NoiseEmbedding, TextConditioner, append_tokens
from train.models.layers import COORDINATE_FEATURES, add_to_prediction, coordinate_features, zero_init
from train.models.unet.attention import ImageAttention
from train.models.unet.blocks import CombineEmbeddings, ResBlock, StridedConv, UpsamplingConv
from train.models.unet.config import SUPPORTED_CONDITIONS, AttentionKind, UNetConfig


class BlockCondition(NamedTuple):
    """Conditioning of each block: the summed vector (B, E) after swish, caption tokens (B, T, C), their mask (B, T)."""

    vector: Tensor
    text: Tensor
    mask: Tensor | None  # None: no token is masked


class Stack(nn.Module):
    """Residual blocks of one level on one side of the U, each followed by attention where ``kinds`` says so.

    ``takes[i]`` > 0: block i first receives a skip of that many channels, concatenated and scaled by 1/sqrt(2) (B.1).
    ``gives``: the blocks whose output becomes a skip. With ``combine: level`` the condition enters once, before the
    first block and after its skip (A.28, A.29).
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
        self.combine = build_combine(config, channels_in + takes[0]) if config.combine == "level" else None
        self.blocks, self.attentions = nn.ModuleList(), nn.ModuleList()
        for position, (kind, skip) in enumerate(zip(kinds, takes, strict=True)):
            self.blocks.append(build_res_block(config, (channels if position else channels_in) + skip, channels))
            self.attentions.append(nn.Identity() if kind == "none" else build_attention(config, channels, kind))

    def forward(self, h_BCHW: Tensor, condition: BlockCondition, skips: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Applies the blocks, taking skips from the end of ``skips``; returns features and the new skips.

        Does not change the list in place: wrappers that hook into modules, such as ZeRO 3, pass a copy.
        """
        skips = list(skips)
        left: list[Tensor] = []
        for block, layer, skip in zip(self.blocks, self.attentions, self.takes, strict=True):
            if skip:
                h_BCHW = torch.cat([h_BCHW, skips.pop() * 2**-0.5], dim=1)
            if self.combine is not None and block is self.blocks[0]:
                h_BCHW = self.combine(h_BCHW, condition.vector)
            if self.recompute and torch.is_grad_enabled():
                h_BCHW = checkpoint(_apply_block, block, layer, h_BCHW, condition, use_reentrant=False)
            else:
                h_BCHW = _apply_block(block, layer, h_BCHW, condition)
            if self.gives == "each":
                left.append(h_BCHW)
        if self.gives == "last":
            left.append(h_BCHW)
        return h_BCHW, left


def _apply_block(block: nn.Module, layer: nn.Module, h_BCHW: Tensor, condition: BlockCondition) -> Tensor:
    """Applies a residual block, then its attention, if any."""
    h_BCHW = block(h_BCHW, condition.vector)
    if isinstance(layer, ImageAttention):
        h_BCHW = layer(h_BCHW, condition.text, condition.mask)
    return h_BCHW


def build_res_block(config: UNetConfig, channels_in: int, channels: int, **options: Any) -> ResBlock:
    """Builds a ResBlock with the config's norms; the number of groups divides both widths."""
    groups = math.gcd(config.norm_groups(channels_in), config.norm_groups(channels))
    condition = config.condition_width if config.combine == "block" else 0
    return ResBlock(channels_in, channels, condition, groups, config.dropout, **options)


def build_combine(config: UNetConfig, channels: int) -> CombineEmbeddings:
    """Builds CombineEmbs with the config's sizes."""
    return CombineEmbeddings(channels, config.condition_width, config.norm_groups(channels))


def build_attention(config: UNetConfig, channels: int, kind: AttentionKind) -> ImageAttention:
    """Builds an attention block with the config's sizes."""
    groups = config.norm_groups(channels)
    return ImageAttention(
        channels, config.head_width, config.context_width, kind, config.feed_forward, groups, config.positions
    )


class UNet(nn.Module):
    """Predicts eps, x0 or v (whichever it is trained for) of a noisy image from its noise level and a caption."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        context, condition = config.context_width, config.condition_width
        self.noise = NoiseEmbedding(config.channels, condition)
        self.lowres_noise = NoiseEmbedding(config.channels, condition) if config.lowres else None
        self.text = TextConditioner(config.text_dim, context, config.text_layers, condition, config.text_directions)
        dim = config.image_embedding_dim
        self.image_embedding = ImageEmbeddingConditioner(dim, context, condition) if dim else None
        self.stem = nn.Conv2d(config.image_channels * (2 if config.lowres else 1), config.channels, 3, padding=1)
        self.place = nn.Conv2d(COORDINATE_FEATURES, config.channels, 1) if config.positions else None
        self.shrink, self.down, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        self._build_levels()
        self.middle = self._middle() if config.middle else None
        self.norm_out = nn.GroupNorm(config.norm_groups(config.channels), config.channels)
        self.out = zero_init(nn.Conv2d(config.channels, config.output_channels(), 3, padding=1))

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
            # As in BigGAN's generator, the input of a larger level has that level's width already (F.1).
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
        return build_res_block(self.config, channels_in, channels, resample="down", factor=stride)

    def _grow(self, channels_in: int, channels: int, stride: int) -> nn.Module:
        if self.config.order == "efficient":
            return UpsamplingConv(channels_in, channels, stride)
        if stride > 1:
            return build_res_block(self.config, channels_in, channels, resample="up", factor=stride)
        return nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns the prediction (B, C, H, W), as `train.models.base.Denoiser` specifies.

        Requires text tokens; a super-resolution U-Net also the low-resolution image and its log-SNR. An image embedding
        is optional, where the config has a width for it.
        """
        lowres_BCHW = conditions.lowres_BCHW
        self._check_inputs(x_BCHW, conditions)
        text_BTC, mask_BT, vector_BE = self.text.read(conditions)
        vector_BE = vector_BE + self.noise(log_snr_B)
        if self.lowres_noise is not None and lowres_BCHW is not None:
            vector_BE = vector_BE + self.lowres_noise(conditions.lowres_log_snr_B)
            x_BCHW = torch.cat([x_BCHW, lowres_BCHW], dim=1)
        if self.image_embedding is not None:
            tokens, more_BE = self.image_embedding(conditions.image_embedding_BE, x_BCHW.shape[0])
            vector_BE = vector_BE + more_BE
            text_BTC, mask_BT = append_tokens(text_BTC, mask_BT, tokens)
        condition = BlockCondition(functional.silu(vector_BE), text_BTC, mask_BT)
        # Channels last: faster for convolutions, on CPUs for GroupNorm too. On GPUs it lasts through a compiled model
        # alone: torch's GroupNorm there gives contiguous tensors, and the convolutions after it another layout.
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        h_BCHW = self.stem(x_BCHW)
        if self.place is not None:
            h_BCHW = h_BCHW + self.place(coordinate_features(h_BCHW.shape[2], h_BCHW.shape[3], h_BCHW))
        h_BCHW = self._levels(h_BCHW, condition)
        output_BCHW: Tensor = self.out(functional.silu(self.norm_out(h_BCHW)))
        if self.config.lowres_residual and lowres_BCHW is not None:
            output_BCHW = add_to_prediction(output_BCHW, lowres_BCHW)
        return output_BCHW

    def encode_text(self, conditions: Conditions) -> Conditions:
        """Returns the conditions with features of the text in its place, see `TextEncodingDenoiser`."""
        return self.text.encode(conditions)

    def enable_recompute(self) -> None:
        """From now on keeps only the input of each block for the backward pass and recomputes the rest there."""
        for module in self.modules():
            if isinstance(module, Stack):
                module.recompute = True

    def _check_inputs(self, x_BCHW: Tensor, conditions: Conditions) -> None:
        check_conditions(conditions, SUPPORTED_CONDITIONS, "unet")
        multiple, size = self.config.size_multiple(), tuple(x_BCHW.shape[2:])
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"image of {size} pixels; height and width must be multiples of {multiple}")
        if conditions.text_BLD is None and conditions.encoded_text_BTC is None:
            raise ValueError("the U-Net needs text_BLD")
        if self.config.lowres and (conditions.lowres_BCHW is None or conditions.lowres_log_snr_B is None):
            raise ValueError("a super-resolution U-Net needs lowres_BCHW and lowres_log_snr_B")
        if not self.config.lowres and conditions.lowres_BCHW is not None:
            raise ValueError("this U-Net takes no low-resolution image; set lowres: true in its config")
        if not self.config.image_embedding_dim and conditions.image_embedding_BE is not None:
            raise ValueError("this U-Net takes no image embedding; set image_embedding_dim to its width in the config")

    def _levels(self, stem_BCHW: Tensor, condition: BlockCondition) -> Tensor:
        """Maps stem features through the U to features of the same size and width."""
        efficient = self.config.order == "efficient"
        h_BCHW = stem_BCHW
        skips: list[Tensor] = []
        for shrink, stack in zip(self.shrink, self.down, strict=True):
            h_BCHW = apply_resampling(shrink, h_BCHW, condition)
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
            h_BCHW = apply_resampling(grow, h_BCHW, condition)
        # The last blocks of the base layout get the stem as a skip; here adding it keeps full-resolution detail.
        return (h_BCHW + stem_BCHW) * 2**-0.5 if efficient else h_BCHW


def apply_resampling(layer: nn.Module, h_BCHW: Tensor, condition: BlockCondition) -> Tensor:
    """Applies a resampling layer; a residual block also takes the condition."""
    result: Tensor = layer(h_BCHW, condition.vector) if isinstance(layer, ResBlock) else layer(h_BCHW)
    return result
