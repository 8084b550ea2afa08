"""Hidden codes: how many, which, and their loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from train.models.refiner.masking import (
    cosine_share,
    hide_at_random,
    hide_codes,
    lowest,
    masked_cross_entropy,
    shown_log_ratio,
)


def test_the_share_falls_from_all_to_none() -> None:
    shares = cosine_share(torch.tensor([0.0, 0.5, 1.0])).tolist()
    assert shares == pytest.approx([1.0, math.sqrt(0.5), 0.0], abs=1e-12)


def test_the_positions_with_the_lowest_values_are_chosen() -> None:
    value_Bhw = torch.tensor([[[3.0, 1.0], [2.0, 0.0]], [[3.0, 1.0], [2.0, 0.0]]])
    chosen = lowest(value_Bhw, torch.tensor([2, 0]))
    assert chosen.tolist() == [[[False, True], [False, True]], [[False, False], [False, False]]]


def test_as_many_codes_are_hidden_as_the_share_says_and_at_least_one() -> None:
    u_B, order_Bhw = torch.tensor([0.0, 0.5, 0.999999]), torch.rand(3, 4, 4)
    counts = hide_at_random(u_B, order_Bhw).flatten(1).sum(1).tolist()
    assert counts == [16, math.ceil(16 * math.sqrt(0.5)), 1]


def test_hidden_codes_have_the_number_after_the_last() -> None:
    codes_Bhw, hidden_Bhw = torch.tensor([[[0, 1]]]), torch.tensor([[[True, False]]])
    assert hide_codes(codes_Bhw, hidden_Bhw, 9).tolist() == [[[9, 1]]]


def test_the_ratio_is_bounded() -> None:
    hidden_Bhw = torch.tensor([[[True, False], [False, False]], [[True, True], [True, True]], [[False] * 2] * 2])
    assert shown_log_ratio(hidden_Bhw).tolist() == pytest.approx([math.log(3), -10, 10], rel=1e-5)


def test_the_loss_counts_hidden_codes_alone() -> None:
    logits_BKhw, codes_Bhw = torch.randn(2, 5, 2, 2), torch.randint(0, 5, (2, 2, 2))
    hidden_Bhw = torch.tensor([[[True, False], [False, False]], [[True, True], [True, False]]])
    loss_B = masked_cross_entropy(logits_BKhw, codes_Bhw, hidden_Bhw, 0.1)
    for row in range(2):
        each = [
            functional.cross_entropy(logits_BKhw[row, :, y, x], codes_Bhw[row, y, x], label_smoothing=0.1)
            for y, x in hidden_Bhw[row].nonzero().tolist()
        ]
        assert float(loss_B[row]) == pytest.approx(float(sum(each)) / 4 * math.pi / 2, rel=1e-5)


def test_the_loss_is_the_mean_over_hidden_codes_on_average() -> None:
    """Of uniform logits every code costs log K, whatever is hidden."""
    u_B = (torch.arange(2000) + 0.5) / 2000
    hidden_Bhw = hide_at_random(u_B, torch.rand(2000, 4, 4))
    loss_B = masked_cross_entropy(torch.zeros(2000, 8, 4, 4), torch.zeros(2000, 4, 4).long(), hidden_Bhw, 0.0)
    assert float(loss_B.mean()) == pytest.approx(math.log(8), rel=0.06)  # counts are rounded up
