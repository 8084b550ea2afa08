"""A transformer block whose norms are shifted and scaled, and whose branches are gated, by the condition.

Shape legend: B batch, N patches, C channels, T caption tokens, E width of the conditioning vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.dit.attention import NORM_EPS, PatchAttention, Rotary, WindowGrid, normalize
from train.models.dit.config import DiTConfig
from train.models.layers import zero_init

MODULATIONS = 6  # shift, scale and gate of attention, and of the feed-forward network


class PatchCondition(NamedTuple):
    """What every block is given besides the patches."""

    vector: Tensor  # (B, E), the summed condition after swish
    shared: Tensor | None  # (B, 6 C), modulation by the matrix that all blocks share; None: each has its own
    text: Tensor  # caption tokens (B, T, context width)
    mask: Tensor | None  # bool (B, 1, 1, keys), True at keys that are seen; None: all
    rotary: Rotary  # of the image, or of a window


def modulate(x_BNC: Tensor, shift_BC: Tensor, scale_BC: Tensor) -> Tensor:
    """Returns (1 + scale) x + shift, with the type of the condition: norms compute in fp32 under autocast."""
    return torch.addcmul(shift_BC[:, None], x_BNC.to(shift_BC.dtype), 1 + scale_BC[:, None])


class SwiGLU(nn.Module):
    """Feed-forward network with a gate: ``out(silu(a) * b)``, a and b linear (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        gate, value = self.hidden(x_BNC).chunk(2, dim=-1)
        out_BNC: Tensor = self.out(functional.silu(gate) * value)
        return out_BNC


class DiTBlock(nn.Module):
    """Attention, cross-attention to the caption if configured, and SwiGLU; adaLN-Zero (Peebles and Xie 2023).

    Every branch starts at zero: by its gate, or, for cross-attention, which has none, by its last layer.
    """

    def __init__(self, config: DiTConfig, shifted: bool) -> None:
        super().__init__()
        width, head, text = config.width, config.head_width, config.context_width
        cross = config.attention == "cross"
        self.window, self.shifted = config.window, shifted
        self.norm_attention = nn.RMSNorm(width, NORM_EPS, elementwise_affine=False)
        self.attention = PatchAttention(width, head, text, "self" if cross else "joint")
        self.norm_cross = nn.RMSNorm(width, NORM_EPS) if cross else None
        self.cross = PatchAttention(width, head, text, "cross") if cross else None
        self.norm_hidden = nn.RMSNorm(width, NORM_EPS, elementwise_affine=False)
        self.feed_forward = SwiGLU(width, config.hidden_width())
        self.modulation = self.offset = None
        if config.modulation == "block":
            self.modulation = nn.Linear(config.condition_width, MODULATIONS * width)
        else:
            self.offset = nn.Parameter(torch.zeros(MODULATIONS * width))
        self.reset_branches()

    def reset_branches(self) -> None:
        """Sets to zero what makes the block the identity."""
        if self.modulation is not None:
            zero_init(self.modulation)
        if self.cross is not None:
            zero_init(self.cross.project)

    def forward(self, x_BNC: Tensor, condition: PatchCondition, size: tuple[int, int]) -> Tensor:
        """``size``: height and width in patches."""
        if self.modulation is not None:
            modulation = self.modulation(condition.vector)
        else:
            assert condition.shared is not None and self.offset is not None
            modulation = condition.shared + self.offset
        shift, scale, gate, shift_hidden, scale_hidden, gate_hidden = modulation.chunk(MODULATIONS, dim=1)
        h_BNC = modulate(self.norm_attention(x_BNC), shift, scale)
        x_BNC = torch.addcmul(x_BNC, gate[:, None], self._attend(h_BNC, condition, size))
        if self.cross is not None and self.norm_cross is not None:
            h_BNC = normalize(self.norm_cross, x_BNC).to(shift.dtype)
            x_BNC = x_BNC + self.cross(h_BNC, None, condition.text, condition.mask)
        h_BNC = modulate(self.norm_hidden(x_BNC), shift_hidden, scale_hidden)
        return torch.addcmul(x_BNC, gate_hidden[:, None], self.feed_forward(h_BNC))

    def _attend(self, h_BNC: Tensor, condition: PatchCondition, size: tuple[int, int]) -> Tensor:
        if not self.window:
            text, mask = (condition.text, condition.mask) if self.cross is None else (None, None)
            out_BNC: Tensor = self.attention(h_BNC, condition.rotary, text, mask)
            return out_BNC
        grid = WindowGrid(*size, self.window, self.shifted)
        mask = grid.mask(h_BNC.device)
        mask = None if mask is None else mask.repeat(h_BNC.shape[0], 1, 1, 1)
        return grid.join(self.attention(grid.cut(h_BNC), condition.rotary, None, mask))
