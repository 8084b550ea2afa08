"""Operations of an update against the closed form of matrix products."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from benchmarks.flops import count_training, count_updates, spread_steps
from tests.helpers.toys import ToyData, ToyTask, config
from train.muon import ITERATIONS

PRODUCT = 2 * 8 * 8 * 33  # of a batch of 8 with one of the two matrices of the toy


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_update_counts_forward_and_backward_products(accumulation: int) -> None:
    # Two forward, two for the weights, and one for the hidden layer; the input has no gradient.
    toy = config(accumulation=accumulation, zero_stage=2)
    assert count_updates(ToyTask(), toy, ToyData(), [0, 7]) == [5 * PRODUCT] * 2
    assert count_training(ToyTask(), toy, ToyData()) == 5 * PRODUCT * toy.steps


def test_counted_updates_are_spread_over_those_of_a_size() -> None:
    assert spread_steps(0, 20) == [0, 5, 10, 15] and spread_steps(7, 9) == [7, 8]


def test_the_products_of_the_optimizer_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ToyTask, "build", lambda self: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 20), nn.Linear(20, 8))
    )
    (plain,) = count_updates(ToyTask(), config(), ToyData(), [0])
    monkeypatch.setattr("train.muon.LEAST_SIDE", 8)
    (muon,) = count_updates(ToyTask(), config(optimizer="muon"), ToyData(), [0])
    square = 2 * 8**3
    # Per matrix: its Gram matrix, its square in each iteration, two more products after it, and the last of all.
    small = square + ITERATIONS * square + (ITERATIONS - 1) * 3 * square + square
    wide = 2 * 8 * 8 * 20 * 2 + ITERATIONS * square + (ITERATIONS - 1) * 3 * square
    assert muon - plain == small + 2 * wide
    assert torch.is_grad_enabled()


def test_what_learns_beside_the_network_begins_and_ends_its_updates() -> None:
    calls: list[str] = []

    class Beside:
        def begin(self, module: nn.Module) -> None:
            calls.append("begin")

        def end_update(self, applied: bool) -> dict[str, torch.Tensor]:
            calls.append(f"end {applied}")
            return {}

        def state(self) -> dict[str, torch.Tensor]:
            return {}

        def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
            raise AssertionError("nothing is loaded")

    task = ToyTask()
    task.companions = {"beside": Beside()}  # type: ignore[attr-defined]
    count_updates(task, config(accumulation=2), ToyData(), [0, 7])
    assert calls == ["begin", "end True", "end True"]
