"""Attention of image features over themselves and over the caption, in one module.

Shape legend: B batch, C channels, N = H * W positions, T text tokens, G heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.layers import COORDINATE_FEATURES, coordinate_features, split_heads, zero_init
from train.models.text_attention import weigh_keys
from train.models.unet.config import AttentionKind


class ImageAttention(nn.Module):
    """Residual attention block: ``x + project(attention(norm(x)))``, then an optional feed-forward block.

    kind "self": over the image's positions. "cross": over the text tokens (F.3). "joint": over both, with the text's
    keys and values concatenated to the image's (D.3.1). ``positions`` adds coordinate features to queries, keys and
    values. With ``feed_forward`` m > 0 a 1x1-convolution network of m times the channels follows (A.28: m = 2). The
    last layer of each part is initialised to zero.
    """

    def __init__(
        self,
        channels: int,
        head_width: int,
        text_width: int,
        kind: AttentionKind,
        feed_forward: int,
        groups: int,
        positions: bool = False,
    ) -> None:
        super().__init__()
        self.place = nn.Linear(COORDINATE_FEATURES, channels) if positions else None
        self.kind, self.heads = kind, max(1, channels // head_width)
        self.norm = nn.GroupNorm(groups, channels)
        self.query = nn.Linear(channels, channels)
        self.image_keys_values = nn.Linear(channels, 2 * channels) if kind in ("self", "joint") else None
        self.text_keys_values = nn.Linear(text_width, 2 * channels) if kind in ("cross", "joint") else None
        self.project = zero_init(nn.Linear(channels, channels))
        self.feed_forward: nn.Sequential | None = None
        if feed_forward:
            hidden = feed_forward * channels
            self.feed_forward = nn.Sequential(
                nn.GroupNorm(groups, channels),
                nn.Conv2d(channels, hidden, 1),
                nn.GELU(),
                zero_init(nn.Conv2d(hidden, channels, 1)),
            )

    def forward(self, x_BCHW: Tensor, text_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        height, width = x_BCHW.shape[2:]
        q, k, v, mask = self._project(x_BCHW, text_BTC, mask_BT)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out_BNC = self.project(mixed.transpose(1, 2).flatten(2))
        x_BCHW = x_BCHW + out_BNC.transpose(1, 2).unflatten(2, (height, width))
        return x_BCHW if self.feed_forward is None else x_BCHW + self.feed_forward(x_BCHW)

    @property
    def reads_text(self) -> bool:
        """Whether the caption is among the keys."""
        return self.text_keys_values is not None

    def weigh_text(self, x_BCHW: Tensor, text_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Returns where the positions look at the caption, see `train.models.text_attention.TextAttention`."""
        q, k, _, mask = self._project(x_BCHW, text_BTC, mask_BT)
        return weigh_keys(q, k, mask)[..., -text_BTC.shape[1] :]

    def _project(
        self, x_BCHW: Tensor, text_BTC: Tensor, mask_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns queries (B, G, N, d), keys and values (B, G, K, d), and a mask of keys; the text's keys come last."""
        height, width = x_BCHW.shape[2:]
        h_BNC = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        if self.place is not None:
            h_BNC = h_BNC + self.place(coordinate_features(height, width, h_BNC).flatten(2).transpose(1, 2))
        keys_values = []
        if self.image_keys_values is not None:
            keys_values.append(self.image_keys_values(h_BNC))
        if self.text_keys_values is not None:
            keys_values.append(self.text_keys_values(text_BTC))
        k, v = (split_heads(part, self.heads) for part in torch.cat(keys_values, dim=1).chunk(2, dim=-1))
        # Without a mask SDPA takes its fastest kernel.
        mask = None
        if self.text_keys_values is not None and mask_BT is not None:
            seen = [mask_BT.new_ones(h_BNC.shape[:2])] if self.image_keys_values is not None else []
            mask = torch.cat([*seen, mask_BT], dim=1)[:, None, None, :]
        return split_heads(self.query(h_BNC), self.heads), k, v, mask
