"""Hidden codes: how many, which, and the loss of predicting them (Chang et al. 2022, MaskGIT, 3.1 and 3.3).

Shape legend: B batch, K number of codes, h w height and width in codes, N = h * w.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LIMIT = 10.0  # of the log of shown / hidden


def cosine_share(u_B: Tensor) -> Tensor:
    """Returns the share of codes that is hidden at ``u`` in [0, 1]: cos(pi u / 2), float64."""
    return torch.cos(u_B.double() * (math.pi / 2)).clamp(0, 1)


def lowest(value_Bhw: Tensor, count_B: Tensor) -> Tensor:
    """Returns bool (B, h, w), True at the ``count_B`` positions of each row where the value is lowest."""
    rank_BN = value_Bhw.flatten(1).argsort(1).argsort(1)
    return (rank_BN < count_B[:, None]).view_as(value_Bhw)


def hide_at_random(u_B: Tensor, order_Bhw: Tensor) -> Tensor:
    """Returns which codes are hidden in training, bool (B, h, w), for uniform numbers: one or more of each row."""
    positions = order_Bhw[0].numel()
    return lowest(order_Bhw, (cosine_share(u_B) * positions).ceil().clamp(min=1))


def hide_codes(codes_Bhw: Tensor, hidden_Bhw: Tensor, count: int) -> Tensor:
    """Returns the codes with their ``count``, which is the number of no code, in place of the hidden ones."""
    return torch.where(hidden_Bhw, count, codes_Bhw)


def shown_log_ratio(hidden_Bhw: Tensor) -> Tensor:
    """Returns log(shown / hidden) codes of each row, float32 (B,), between -10 and 10."""
    share_B = hidden_Bhw.flatten(1).float().mean(1).clamp(1e-6, 1 - 1e-6)
    return torch.log((1 - share_B) / share_B).clamp(-LIMIT, LIMIT)


def masked_cross_entropy(logits_BKhw: Tensor, codes_Bhw: Tensor, hidden_Bhw: Tensor, smoothing: float) -> Tensor:
    """Returns the cross-entropy (B,) in nats summed over the hidden codes, times pi / 2 / N.

    That is about the mean over the hidden ones: cos(pi u / 2) leaves 2 / pi of N on average. It is no mean of each
    row's, so that every hidden code counts equally, and none of the batch's, so that it may be split.
    """
    loss_Bhw = functional.cross_entropy(logits_BKhw.float(), codes_Bhw, reduction="none", label_smoothing=smoothing)
    return (loss_Bhw * hidden_Bhw).flatten(1).mean(1) * (math.pi / 2)
