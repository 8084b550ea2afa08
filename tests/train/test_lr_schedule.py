"""Learning rate and EMA decay."""

from __future__ import annotations

import pytest

from train.lr_schedule import ema_decay_at, learning_rate_at


def test_decay_warms_up() -> None:
    assert ema_decay_at(1, 0.9999) == pytest.approx(2 / 11)
    assert ema_decay_at(10**7, 0.9999) == 0.9999


def test_learning_rate() -> None:
    assert [learning_rate_at(step, 1.0, 4, None) for step in (0, 3, 4, 99)] == [0.25, 1.0, 1.0, 1.0]
    rates = [learning_rate_at(step, 1.0, 10, 110, 0.1) for step in range(10, 120)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0 and rates[50] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1)
