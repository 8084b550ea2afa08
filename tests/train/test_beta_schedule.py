"""Tables of discrete noise schedules against diffusers' schedulers; steps and log-SNRs invert each other."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from train.beta_schedule import BetaKind, BetaSchedule, OwnSpacing, find_step, log_snr_at_step, log_snr_table, own_steps

KINDS: tuple[BetaKind, ...] = get_args(BetaKind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [50, 1000])
def test_tables_are_those_of_diffusers(kind: BetaKind, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=steps, beta_schedule=kind, beta_start=2e-4, beta_end=0.03)
    product = scheduler.alphas_cumprod.double()
    table = log_snr_table(BetaSchedule(kind=kind, steps=steps, start=2e-4, end=0.03))
    torch.testing.assert_close(table, torch.log(product / (1 - product)), atol=1e-9, rtol=1e-9)
    assert bool((table.diff() < 0).all())


def test_given_betas_are_the_table() -> None:
    schedule = BetaSchedule(kind="linear", steps=3, values=(0.1, 0.5, 0.25))
    product = torch.tensor([0.9, 0.45, 0.3375], dtype=torch.float64)
    torch.testing.assert_close(log_snr_table(schedule), torch.log(product / (1 - product)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_steps_survive_float32(kind: BetaKind) -> None:
    table = log_snr_table(BetaSchedule(kind=kind))
    steps = torch.arange(1000)
    assert torch.equal(find_step(log_snr_at_step(steps, table).float(), table), steps.float())


@pytest.mark.parametrize("kind", KINDS)
def test_steps_between_are_found_again(kind: BetaKind) -> None:
    table = log_snr_table(BetaSchedule(kind=kind))
    steps = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 999
    found = find_step(log_snr_at_step(steps, table), table)
    torch.testing.assert_close(found.double(), steps, atol=2e-3, rtol=0)


def test_between_two_steps_log_snr_is_linear_and_beyond_the_ends_it_stops() -> None:
    table = torch.tensor([4.0, 2.0, -6.0], dtype=torch.float64)
    assert log_snr_at_step(torch.tensor([0.5, 1.25, 2.0, 9.0, -1.0]), table).tolist() == [3.0, 0.0, -6.0, -6.0, 4.0]
    assert find_step(torch.tensor([9.0, 3.0, 0.0, -6.0, -20.0]), table).tolist() == [0.0, 0.5, 1.25, 2.0, 2.0]


@pytest.mark.parametrize("spacing", get_args(OwnSpacing))
@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_own_steps_are_those_of_diffusers(spacing: OwnSpacing, count: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(count)
    assert own_steps(1000, count, spacing) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("count", [0, 1001])
def test_a_count_of_steps_that_there_is_not(count: int) -> None:
    with pytest.raises(ValueError, match=f"steps {count} is not in 1 to 1000"):
        own_steps(1000, count, "leading")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"steps": 3, "values": (0.1, 0.2)}, "values has 2 betas, steps is 3; make them equal"),
        ({"steps": 2, "values": (0.1, 1.0)}, "beta 1.0 is not between 0 and 1"),
        ({"kind": "sigmoid"}, "squaredcos_cap_v2"),
        ({"steps": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_schedules(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BetaSchedule(**keys)
