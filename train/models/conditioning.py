"""Conditioning of a denoiser: the noise level, the caption as tokens and as one pooled vector, an image embedding.

Shape legend: B batch, L caption tokens, T = L + 1 tokens with the null token in front, D text width, C context width,
E width of the conditioning vector, V width of the image embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.base import Conditions
from train.models.layers import split_heads

IMAGE_TOKENS = 4  # context tokens of an image embedding (Ramesh et al. 2022, section 2.1)
NULL_TOKENS = 1  # of `TextConditioner`, in front of the caption's


class NoiseEmbedding(nn.Module):
    """Log signal-to-noise ratio (B,) -> (B, E): sine and cosine features, then a two-layer network."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.hidden, self.out = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, log_snr_B: Tensor) -> Tensor:
        # Periods from 0.8, which separates neighbouring sampler steps, to 160, which covers [-20, 20].
        grid = torch.linspace(math.log(0.04), math.log(8.0), self.features // 2, device=log_snr_B.device)
        phase_BF = log_snr_B.float()[:, None] * grid.exp()[None]
        waves_BF = torch.cat([phase_BF.sin(), phase_BF.cos()], dim=1).to(self.hidden.weight.dtype)
        return self.out(functional.silu(self.hidden(waves_BF)))


class TextBlock(nn.Module):
    """Pre-norm transformer block over tokens: self-attention, then a GELU network of ``growth`` times the width.

    ``directions``: heads look, by turns, at all tokens, back and ahead (`direction_mask`).
    """

    def __init__(self, width: int, heads: int, directions: bool = False, growth: int = 2) -> None:
        super().__init__()
        self.heads, self.directions = heads, directions
        self.norm_attention, self.norm_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.out = nn.Linear(width, growth * width), nn.Linear(growth * width, width)
        for layer in (self.project, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm_attention(x_BTC)).chunk(3, dim=-1))
        mask = mask_keys(mask_BT)
        if self.directions:
            mask_GTT = direction_mask(self.heads, x_BTC.shape[1], x_BTC.device)
            mask = mask_GTT if mask is None else mask & mask_GTT
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x_BTC = x_BTC + self.project(mixed.transpose(1, 2).flatten(2))
        return x_BTC + self.out(functional.gelu(self.hidden(self.norm_hidden(x_BTC))))


class AttentionPool(nn.Module):
    """Pools tokens (B, T, C) into a vector (B, C): a learned query attends over the unmasked tokens (F.1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.keys_values = nn.Linear(width, 2 * width)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        k, v = (split_heads(part, self.heads) for part in self.keys_values(x_BTC).chunk(2, dim=-1))
        q = split_heads(self.query.expand(x_BTC.shape[0], 1, -1), self.heads)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_keys(mask_BT)).transpose(1, 2).flatten(1)


class TextConditioner(nn.Module):
    """Maps encoder output to context tokens, their mask, and a pooled vector for the noise embedding (F.1).

    A learned null token always comes first, so that every row has a token to attend to: an unconditional row (``keep``
    False) and an empty caption see only the null token, for any padded length. ``layers`` > 0 adds position features
    and a small transformer, which helps with a weak text encoder; ``directions`` as in `TextBlock`.
    """

    def __init__(self, text_dim: int, width: int, layers: int, pooled_width: int, directions: bool = False) -> None:
        super().__init__()
        heads = max(count for count in range(1, max(1, width // 32) + 1) if width % count == 0)  # about 32 wide
        self.norm, self.project = nn.LayerNorm(text_dim), nn.Linear(text_dim, width)
        self.null = nn.Parameter(torch.randn(width) * 0.5)
        self.layers = nn.ModuleList(TextBlock(width, heads, directions) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.pool = AttentionPool(width, heads)
        self.pool_norm, self.pool_out = nn.LayerNorm(width), nn.Linear(width, pooled_width)

    def forward(
        self, text_BLD: Tensor, mask_BL: Tensor | None, keep_B: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Maps (B, L, D) float, (B, L) bool, (B,) bool to tokens (B, T, C), mask (B, T) bool, pooled (B, E).

        Without masks, where no row has padding and every row is kept, there is none to attend with either.
        """
        batch = text_BLD.shape[0]
        if keep_B is not None:
            kept_BL = keep_B[:, None].expand(text_BLD.shape[:2])
            mask_BL = kept_BL if mask_BL is None else mask_BL.bool() & kept_BL
        x_BTC = self.project(self.norm(text_BLD.to(self.project.weight.dtype)))
        if self.layers:
            x_BTC = x_BTC + position_features(x_BTC.shape[1], x_BTC.shape[2], x_BTC.device).to(x_BTC.dtype)
        mask_BT = None
        if mask_BL is not None:
            mask_BL = mask_BL.bool()
            # Padding may hold NaN, which would spread through the sum although its key is masked.
            x_BTC = torch.where(mask_BL[:, :, None], x_BTC, 0.0)
            mask_BT = torch.cat([mask_BL.new_ones(batch, 1), mask_BL], dim=1)
        x_BTC = torch.cat([self.null.expand(batch, 1, -1), x_BTC], dim=1)
        for layer in self.layers:
            x_BTC = layer(x_BTC, mask_BT)
        x_BTC = self.norm_out(x_BTC)
        return x_BTC, mask_BT, self.pool_out(self.pool_norm(self.pool(x_BTC, mask_BT)))

    def encode(self, conditions: Conditions) -> Conditions:
        """Returns the conditions with the three of `forward` in place of the text."""
        assert conditions.text_BLD is not None
        tokens, mask, pooled = self(conditions.text_BLD, conditions.text_mask_BL, conditions.text_keep_B)
        return conditions._replace(
            text_BLD=None,
            text_mask_BL=None,
            text_keep_B=None,
            encoded_text_BTC=tokens,
            encoded_mask_BT=mask,
            encoded_pooled_BE=pooled,
        )

    def read(self, conditions: Conditions) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns the three of `forward`: as `encode` put them into the conditions, or of their text."""
        if conditions.encoded_text_BTC is None:
            conditions = self.encode(conditions)
        assert conditions.encoded_text_BTC is not None and conditions.encoded_pooled_BE is not None
        return conditions.encoded_text_BTC, conditions.encoded_mask_BT, conditions.encoded_pooled_BE


class OptionalVector(nn.Module):
    """A vector per row (B, V), normalised; a row of zeros, and no vector at all, become a learned null vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, vector_BV: Tensor | None, batch: int) -> Tensor:
        given_BV = self.null.expand(batch, -1)
        if vector_BV is not None:
            vector_BV = vector_BV.to(self.null.dtype)
            given_BV = torch.where((vector_BV != 0).any(1, keepdim=True), vector_BV, given_BV)
        normal_BV: Tensor = self.norm(given_BV)
        return normal_BV


class ImageEmbeddingConditioner(nn.Module):
    """An image embedding as context tokens, and as a vector to add to the noise embedding (Ramesh et al. 2022, 2.1)."""

    def __init__(self, dim: int, context_width: int, condition_width: int) -> None:
        super().__init__()
        self.embedding = OptionalVector(dim)
        self.tokens = nn.Linear(dim, IMAGE_TOKENS * context_width)
        self.vector = nn.Linear(dim, condition_width)

    def forward(self, embedding_BV: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """Returns tokens (B, 4, C) and a vector (B, E); without an embedding, as `OptionalVector`, learned ones."""
        given_BV = self.embedding(embedding_BV, batch)
        return self.tokens(given_BV).unflatten(1, (IMAGE_TOKENS, -1)), self.vector(given_BV)


def append_tokens(x_BTC: Tensor, mask_BT: Tensor | None, more_BTC: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns tokens and their mask with ``more_BTC`` at the end, which nothing masks."""
    if mask_BT is not None:
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(more_BTC.shape[:2])], dim=1)
    return torch.cat([x_BTC, more_BTC.to(x_BTC.dtype)], dim=1), mask_BT


def mask_keys(mask_BT: Tensor | None) -> Tensor | None:
    """Returns a mask of keys for every head and query (B, 1, 1, T); None without a mask: SDPA's fastest kernel."""
    return None if mask_BT is None else mask_BT[:, None, None, :]


def direction_mask(heads: int, length: int, device: torch.device) -> Tensor:
    """Returns which key each head's query sees, bool (G, T, T): head 0 all, 1 those before it, 2 those after, 3 all ...

    Every query sees itself and the null token, which is the first. What stands before a word and what after it, such as
    the two sides of "left of", are different sums then, where position features would leave an exclusive or to learn
    (as the directional attention of Shen et al. 2018, section 4.1).
    """
    place_T = torch.arange(length, device=device)
    back_TT = place_T[:, None] >= place_T
    ahead_TT = (place_T[:, None] <= place_T) | (place_T == 0)
    kinds = (torch.ones_like(back_TT), back_TT, ahead_TT)
    return torch.stack([kinds[head % 3] for head in range(heads)])


def position_features(length: int, width: int, device: torch.device) -> Tensor:
    """Returns sinusoidal position features (length, width), float32 (Vaswani et al. 2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    phase = torch.arange(length, device=device)[:, None] * rate[None]
    return torch.stack([phase.sin(), phase.cos()], dim=2).flatten(1)[:, :width]
