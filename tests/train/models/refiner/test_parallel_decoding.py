"""Masked parallel decoding with networks whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from train.models.refiner.parallel_decoding import Draw, decode_codes, draw_codes

K, SIDE = 5, 4


def uniform_draw(seed: int, batch: int = 2) -> Draw:
    """Returns uniform numbers by their draw."""
    return lambda number: torch.rand(batch, SIDE, SIDE, generator=torch.Generator().manual_seed(1000 * seed + number))


def test_a_certain_network_decides_everything() -> None:
    truth_Bhw = torch.randint(0, K, (2, SIDE, SIDE))
    logits = torch.nn.functional.one_hot(truth_Bhw, K).movedim(3, 1) * 50.0
    hidden = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    for rounds in (1, 3, 8):
        found = decode_codes(lambda c, r: logits, torch.zeros_like(truth_Bhw), hidden, K, rounds, 1.0, uniform_draw(0))
        assert torch.equal(found, truth_Bhw)


def test_given_codes_stay_and_are_seen() -> None:
    """A network that copies the one given code everywhere."""
    given_Bhw = torch.tensor([3, 1])[:, None, None].expand(2, SIDE, SIDE)
    hidden_Bhw = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    hidden_Bhw[:, 0, 0] = False
    seen: list[Tensor] = []

    def predict(codes_Bhw: Tensor, ratio_B: Tensor) -> Tensor:
        seen.append(codes_Bhw)
        return torch.nn.functional.one_hot(codes_Bhw[:, :1, :1].expand_as(codes_Bhw), K).movedim(3, 1) * 50.0

    found = decode_codes(predict, given_Bhw, hidden_Bhw, K, 2, 0.0, uniform_draw(0))
    assert torch.equal(found, given_Bhw)
    assert bool((seen[0][hidden_Bhw] == K).all()) and not bool((seen[0][~hidden_Bhw] == K).any())


def test_the_cosine_says_how_many_are_hidden_in_each_round() -> None:
    hidden: list[int] = []

    def predict(codes_Bhw: Tensor, ratio_B: Tensor) -> Tensor:
        hidden.append(int((codes_Bhw[0] == K).sum()))
        share = hidden[-1] / SIDE**2
        assert float(ratio_B[0]) == pytest.approx(max(-10, math.log((1 - share + 1e-30) / share)), rel=1e-3)
        return torch.randn(2, K, SIDE, SIDE)

    everything = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    decode_codes(predict, torch.zeros(2, SIDE, SIDE).long(), everything, K, 4, 1.0, uniform_draw(0))
    assert hidden == [16, *(math.floor(16 * math.cos(math.pi / 2 * done / 4)) for done in (1, 2, 3))]


def test_the_most_certain_are_kept() -> None:
    certain = torch.linspace(1, 4, SIDE * SIDE).view(1, 1, SIDE, SIDE)
    logits = torch.cat([certain, torch.zeros(1, K - 1, SIDE, SIDE)], dim=1).expand(2, -1, -1, -1)
    shown: list[Tensor] = []

    def predict(codes_Bhw: Tensor, ratio_B: Tensor) -> Tensor:
        shown.append(codes_Bhw != K)
        return logits

    everything = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    decode_codes(predict, torch.zeros(2, SIDE, SIDE).long(), everything, K, 2, 0.0, uniform_draw(0))
    count = int(shown[1][0].sum())
    assert 0 < count < 16 and bool(shown[1].flatten(1)[:, -count:].all())


def test_codes_are_drawn_with_their_probabilities() -> None:
    logits_BKhw = torch.tensor([0.0, 1.0, 2.0])[None, :, None, None].expand(1, 3, 200, 200)
    uniform = torch.rand(1, 200, 200, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 2.0):
        drawn, log_share = draw_codes(logits_BKhw, temperature, uniform)
        wanted = torch.softmax(torch.tensor([0.0, 1.0, 2.0]) / temperature, 0)
        assert torch.bincount(drawn.flatten()) / 40000 == pytest.approx(wanted.numpy(), abs=0.01)
        assert torch.allclose(log_share, torch.log_softmax(torch.tensor([0.0, 1.0, 2.0]), 0)[drawn])
    assert bool((draw_codes(logits_BKhw, 0.0, uniform)[0] == 2).all())
    assert int(draw_codes(logits_BKhw, 1.0, torch.ones(1, 200, 200))[0].max()) == 2  # rounding gives no code K
