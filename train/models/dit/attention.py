"""Attention of patches over each other and over the caption: QK-norm, rotary positions, windows.

Shape legend: B batch, H W height and width in patches, N = H * W patches, C channels, T caption tokens, G heads,
d head width, M number of windows, P = S * S patches of a window of side S.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.text_attention import weigh_keys

NORM_EPS = 1e-6
ROTARY_BASE = 100.0  # periods up to 2 pi 100 patches (Heo et al. 2024, RoPE-Axial)


class Rotary(NamedTuple):
    """Cosine and sine of the rotation of each position, (N, d / 2)."""

    cos: Tensor
    sin: Tensor


def rotary_2d(height: int, width: int, head_width: int, like: Tensor) -> Rotary:
    """Returns the rotations of a grid in row-major order: half of the frequencies turn with y, half with x.

    Coordinates count patches from the centre, so that scores depend on the distance of two patches alone, and those of
    a caption token, which is not rotated, on the place of the patch.
    """
    count = head_width // 4
    rate, y, x = (torch.arange(n, device=like.device, dtype=torch.float32) for n in (count, height, width))
    rate, y, x = ROTARY_BASE ** (-rate / count), y - (height - 1) / 2, x - (width - 1) / 2
    angle_y = (y[:, None] * rate)[:, None].expand(-1, width, -1)
    angle_x = (x[:, None] * rate)[None].expand(height, -1, -1)
    angle = torch.cat([angle_y, angle_x], dim=2).flatten(0, 1)
    return Rotary(angle.cos().to(like.dtype), angle.sin().to(like.dtype))


def rotate(x_BNGd: Tensor, by: Rotary) -> Tensor:
    """Turns channel i and i + d / 2 of each position, as a pair, by the position's angle (Su et al. 2021)."""
    first, second = x_BNGd.chunk(2, dim=-1)
    cos, sin = by.cos[:, None], by.sin[:, None]
    turned = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
    return torch.cat(turned, dim=-1)


def normalize(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Returns ``norm(x)`` in the type of its weight: fp32 under autocast on CPUs too, as on GPUs."""
    return norm(x.to(norm.weight.dtype))


class PatchAttention(nn.Module):
    """``project(attention(x))`` of patches.

    kind "self": over the patches. "cross": over the caption tokens. "joint": over both, with the caption's keys and
    values concatenated to the image's. Queries and keys are normalised per head (QK-norm: Dehghani et al. 2023), so
    that scores stay bounded in long trainings; those of patches are rotated by their position.
    """

    def __init__(self, width: int, head_width: int, text_width: int, kind: Literal["self", "cross", "joint"]) -> None:
        super().__init__()
        self.heads = width // head_width
        self.query = nn.Linear(width, width)
        self.norm_query = nn.RMSNorm(head_width, NORM_EPS)
        self.image_keys_values = self.norm_image = self.text_keys_values = self.norm_text = None
        if kind != "cross":
            self.image_keys_values = nn.Linear(width, 2 * width)
            self.norm_image = nn.RMSNorm(head_width, NORM_EPS)
        if kind != "self":
            self.text_keys_values = nn.Linear(text_width, 2 * width)
            self.norm_text = nn.RMSNorm(head_width, NORM_EPS)
        self.project = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, rotary: Rotary | None, text_BTC: Tensor | None, mask: Tensor | None) -> Tensor:
        """Returns (B, N, C); ``mask`` is bool, True at keys that are seen, and broadcasts to (B, G, N, keys)."""
        q, k, v = self._project(x_BNC, rotary, text_BTC)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out_BNC: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out_BNC

    @property
    def reads_text(self) -> bool:
        """Whether the caption is among the keys."""
        return self.text_keys_values is not None

    def weigh_text(self, x_BNC: Tensor, rotary: Rotary | None, text_BTC: Tensor, mask: Tensor | None) -> Tensor:
        """Returns where the patches look at the caption, see `train.models.text_attention.TextAttention`."""
        q, k, _ = self._project(x_BNC, rotary, text_BTC)
        return weigh_keys(q, k, mask)[..., -text_BTC.shape[1] :]

    def _project(self, x_BNC: Tensor, rotary: Rotary | None, text_BTC: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries (B, G, N, d), keys and values (B, G, K, d); the caption's keys come last."""
        # Heads move to the front last: until then all tensors lie in memory as they are read.
        q = normalize(self.norm_query, self.query(x_BNC).unflatten(2, (self.heads, -1)))
        keys, values = [], []
        if self.image_keys_values is not None:
            assert self.norm_image is not None and rotary is not None
            k, v = self._split(self.image_keys_values(x_BNC))
            q = rotate(q, rotary)
            keys.append(rotate(normalize(self.norm_image, k), rotary))
            values.append(v)
        if self.text_keys_values is not None:
            assert self.norm_text is not None and text_BTC is not None
            k, v = self._split(self.text_keys_values(text_BTC))
            keys.append(normalize(self.norm_text, k))
            values.append(v)
        # A cat of one would copy it.
        k, v = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in (keys, values))
        # The norms compute in fp32 under autocast; the kernel needs one type.
        return q.to(v.dtype).transpose(1, 2), k.to(v.dtype).transpose(1, 2), v.transpose(1, 2)

    def _split(self, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values (B, K, G, d)."""
        k, v = keys_values.unflatten(2, (2, self.heads, -1)).unbind(2)
        return k, v


class WindowGrid(NamedTuple):
    """How an image of H x W patches is cut into windows of S x S; ``shift``: the windows start S / 2 later, cyclically.

    Blocks with and without shift take turns, which carries content from window to window (Liu et al. 2021, Swin).
    """

    height: int
    width: int
    side: int
    shift: bool

    def cut(self, x_BNC: Tensor) -> Tensor:
        """(B, N, C) -> (B * M, P, C)."""
        x_BHWC = x_BNC.unflatten(1, (self.height, self.width))
        if self.shift:
            x_BHWC = x_BHWC.roll((-(self.side // 2),) * 2, dims=(1, 2))
        x = x_BHWC.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, windows: Tensor) -> Tensor:
        """(B * M, P, C) -> (B, N, C)."""
        down, across = self.height // self.side, self.width // self.side
        x = windows.unflatten(1, (self.side, self.side)).unflatten(0, (-1, down, across))
        x_BHWC = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shift:
            x_BHWC = x_BHWC.roll((self.side // 2,) * 2, dims=(1, 2))
        return x_BHWC.flatten(1, 2)

    def mask(self, device: torch.device) -> Tensor | None:
        """Returns bool (M, 1, P, P): False between opposite borders, which a shifted window holds; None: no shift."""
        if not self.shift:
            return None
        wrapped_H = torch.arange(self.height, device=device) < self.side // 2
        wrapped_W = torch.arange(self.width, device=device) < self.side // 2
        region_HW = wrapped_H[:, None] * 2 + wrapped_W[None] * 1
        region_MP = self.cut(region_HW.view(1, -1, 1)).squeeze(2)
        return (region_MP[:, :, None] == region_MP[:, None, :])[:, None]
