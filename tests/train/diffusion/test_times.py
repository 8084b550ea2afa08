"""Distributions of training times against closed forms and counts."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from train.diffusion.config import DiffusionConfig, ScheduleName
from train.diffusion.objective import diffusion_loss, log_snr_at_time
from train.diffusion.schedules import log_snr_slope
from train.diffusion.times import TIMES, draw_times, log_snr_spread

EVEN = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


def test_logit_normal_times_are_normal_in_their_logit() -> None:
    config = DiffusionConfig(times="logit_normal", times_mean=0.8, times_std=0.6)
    logits = draw_times(EVEN, config).logit()
    assert float(logits.mean()) == pytest.approx(0.8, abs=1e-3) and float(logits.std()) == pytest.approx(0.6, abs=1e-3)
    assert bool((logits.diff() > 0).all())
    torch.testing.assert_close(draw_times(EVEN, DiffusionConfig()), EVEN)
    ends = draw_times(torch.tensor([0.0, 1.0]), config)
    assert bool(((ends > 0) & (ends < 1)).all())


@pytest.mark.parametrize("times", sorted(TIMES))
def test_the_density_is_that_of_the_times(times: str) -> None:
    config = DiffusionConfig(times=times, times_mean=-0.5, times_std=0.8)
    found = torch.histc(draw_times(EVEN, config).float(), 20, 0, 1) / len(EVEN) * 20
    centres = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    wanted = TIMES[times].density(centres, config).view(20, -1).mean(1)
    torch.testing.assert_close(found, wanted.float(), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
def test_the_spread_is_one_over_the_density_of_log_snr(schedule: ScheduleName) -> None:
    config = DiffusionConfig(schedule=schedule, log_snr_shift=0.5, times="logit_normal", times_mean=0.3)
    at = log_snr_at_time(config, draw_times(EVEN, config)).double()
    inside = (at > -2) & (at < 3)
    # The mean of the spread over training's noise levels is the length of the interval.
    assert float((log_snr_spread(at, config) * inside).mean()) == pytest.approx(5, rel=2e-3)
    uniform = DiffusionConfig(schedule=schedule)
    assert torch.equal(log_snr_spread(at, uniform), log_snr_slope(at, schedule))


def test_the_loss_is_taken_at_these_times() -> None:
    config, seen = DiffusionConfig(times="logit_normal", times_mean=2.0, times_std=0.1, schedule="flow"), list[Tensor]()
    zeros = torch.zeros(2, 1, 1, 1)

    def predict(x: Tensor, at: Tensor) -> Tensor:
        seen.append(at)
        return x

    diffusion_loss(predict, zeros, torch.tensor([0.5, 0.9]), zeros, config)
    torch.testing.assert_close(seen[0], -2 * torch.tensor([2.0, 2.0 + 0.1 * 1.28155]), atol=1e-4, rtol=1e-4)


def test_unknown_times_are_refused() -> None:
    with pytest.raises(ValidationError, match="'late' is unknown; take one of uniform, logit_normal"):
        DiffusionConfig(times="late")
