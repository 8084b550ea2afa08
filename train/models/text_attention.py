"""Where the layers of a denoiser look at the caption, computed beside their forward pass for who asks.

Shape legend: B batch, N positions of the image in row-major order, T context tokens, K keys, G heads, d head width.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class TextAttention(Protocol):
    """An attention layer that may read the caption, called as ``layer(x, ...)`` by position."""

    @property
    def reads_text(self) -> bool:
        """Whether it does."""

    def weigh_text(self, *inputs: Any) -> Tensor:
        """Returns, for the inputs of a call, the share that each position gives to each token, (B, N, T).

        The mean over the heads; of a layer that attends to the image too, the shares of a position's tokens sum to less
        than 1.
        """


def weigh_keys(q_BGNd: Tensor, k_BGKd: Tensor, mask: Tensor | None) -> Tensor:
    """Returns softmax attention (B, N, K), mean over heads, float32; ``mask``: bool, True at keys that are seen."""
    scores = q_BGNd.float() @ k_BGKd.float().transpose(-1, -2) * q_BGNd.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).mean(1)
