"""AdamW with its average: against torch and by hand; schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.config import TrainConfig
from train.engine import Engine
from train.optim import AdamWEma, parameter_groups
from train.schedule import ema_decay_at, learning_rate


def test_weights_follow_torch_and_the_average_is_right_by_hand() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.zeros(5, 3))
    theirs.data.copy_(ours.data)
    average = ours.detach().clone()
    mine = AdamWEma([ours], lr=0.1, ema_decay=0.5, weight_decay=0.1)
    plain = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for update in range(1, 30):
        gradient = torch.randn(5, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        plain.step()
        decay = min(0.5, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * theirs.detach()
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(mine.state[ours]["ema"], average)


def test_skip_changes_nothing() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = AdamWEma([param], lr=0.1, ema_decay=0.9)
    param.grad = torch.full((3,), float("nan"))
    optimizer.skip = True
    optimizer.step()
    assert torch.equal(param, torch.ones(3)) and not optimizer.state[param]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_average_under_zero_by_hand(stage: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    config = TrainConfig(batch_size=4, zero_stage=stage, ema_decay=0.7, learning_rate=0.1, weight_decay=0.0)
    engine = Engine(model, config)
    average = engine.weights("ema")
    for update in range(1, 12):
        engine.backward(engine(torch.randn(4, 3)).square().mean())
        assert engine.step(0.1).applied
        decay = min(0.7, (1 + update) / (10 + update))
        now = {name: slots["weight"] for name, slots in engine.full_state()}
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    assert engine.updates() == 11
    for name, value in engine.weights("ema").items():
        torch.testing.assert_close(value, average[name])
        assert not torch.equal(value, now[name])


def test_decay_warms_up() -> None:
    assert ema_decay_at(1, 0.9999) == pytest.approx(2 / 11)
    assert ema_decay_at(10**7, 0.9999) == 0.9999


def test_learning_rate() -> None:
    assert [learning_rate(step, 1.0, 4, 100, "constant") for step in (0, 3, 4, 99)] == [0.25, 1.0, 1.0, 1.0]
    rates = [learning_rate(step, 1.0, 10, 110, "cosine", 0.1) for step in range(10, 120)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0 and rates[50] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1)


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    model[1].bias.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert [param.ndim for param in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 2 and plain["weight_decay"] == 0.0
