"""Masked parallel decoding: all codes at once, of which the most certain are kept, round by round (MaskGIT, 3.2).

Pure functions: network and noise are arguments.

Shape legend: B batch, K number of codes, h w height and width in codes, N = h * w.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from train.models.refiner.masking import cosine_share, hide_codes, lowest, shown_log_ratio

# (codes, of which K stands for hidden (B, h, w), log of shown / hidden (B,)) -> logits (B, K, h, w)
PredictCodes = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[int], Tensor]  # number of a draw -> uniform numbers in (0, 1), (B, h, w)
CHOICE_NOISE = 4.5  # at temperature 1, of the certainty in the first round


def decode_codes(
    predict: PredictCodes,
    codes_Bhw: Tensor,
    hidden_Bhw: Tensor,
    count: int,
    rounds: int,
    temperature: float,
    draw: Draw,
) -> Tensor:
    """Returns all codes, int64 (B, h, w), with those that are not hidden as they are given; ``count`` is K.

    After round t of ``rounds`` the share cos(pi t / 2 rounds) of the hidden ones is still hidden. ``temperature``: of
    the draw of each code, and of which are kept; 0: the likeliest codes, and the most certain.
    """
    hidden_B = hidden_Bhw.flatten(1).sum(1)
    for done in range(1, rounds + 1):
        logits_BKhw = predict(hide_codes(codes_Bhw, hidden_Bhw, count), shown_log_ratio(hidden_Bhw))
        drawn_Bhw, certainty_Bhw = draw_codes(logits_BKhw.float(), temperature, draw(2 * done))
        codes_Bhw = torch.where(hidden_Bhw, drawn_Bhw, codes_Bhw)
        left_B = (hidden_B * cosine_share(torch.full_like(hidden_B, done, dtype=torch.float64) / rounds)).floor()
        if temperature:
            gumbel_Bhw = -torch.log(-torch.log(draw(2 * done + 1)))
            certainty_Bhw = certainty_Bhw + temperature * CHOICE_NOISE * (1 - done / rounds) * gumbel_Bhw
        hidden_Bhw = lowest(torch.where(hidden_Bhw, certainty_Bhw, math.inf), left_B)
    return codes_Bhw


def draw_codes(logits_BKhw: Tensor, temperature: float, uniform_Bhw: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a code for each position, int64, and the log of its probability, both (B, h, w).

    Drawn at ``temperature`` by the inverse of the distribution; 0: the likeliest.
    """
    log_share_BKhw = logits_BKhw.log_softmax(1)
    if temperature:
        below_BKhw = (logits_BKhw / temperature).softmax(1).cumsum(1)
        last = logits_BKhw.shape[1] - 1
        drawn_Bhw = (below_BKhw < uniform_Bhw[:, None]).sum(1).clamp(max=last)
    else:
        drawn_Bhw = logits_BKhw.argmax(1)
    return drawn_Bhw, log_share_BKhw.gather(1, drawn_Bhw[:, None])[:, 0]
