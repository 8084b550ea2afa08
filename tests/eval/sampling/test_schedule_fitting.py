"""Fitted noise levels: the search against brute force, the errors against the known ODE of Gaussian data."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from eval.sampling.schedule_fitting import choose_levels, measure_steps, path_cost
from tests.helpers.gaussian import exact_denoiser, normal
from train.diffusion.config import DiffusionConfig
from train.diffusion.objective import evaluation_log_snrs
from train.diffusion.samplers import ddim
from train.diffusion.schedules import alpha_sigma

DENOISE = exact_denoiser(0.4, 0.1)


def random_costs(levels: int, seed: int) -> Tensor:
    costs = torch.rand(levels, levels + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return costs.masked_fill(torch.ones_like(costs).tril().bool(), torch.inf)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_path_is_the_cheapest_of_all(steps: int, seed: int) -> None:
    costs = random_costs(7, seed)
    every = [(0, *rest) for rest in combinations(range(1, 7), steps - 1)]
    path = choose_levels(costs, steps)
    assert len(path) == steps and path == sorted(set(path)) and path[0] == 0
    assert path_cost(costs, path) == pytest.approx(min(path_cost(costs, other) for other in every))


@pytest.mark.parametrize("steps", [0, 8])
def test_more_steps_than_levels_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"{steps} steps of 7 levels; take 1 to 7"):
        choose_levels(random_costs(7, 0), steps)


def test_errors_are_those_of_one_step_along_the_known_path() -> None:
    log_snrs, start = evaluation_log_snrs(DiffusionConfig(), 200), normal(64, 1, 2, 2)
    costs = measure_steps(DENOISE, start, log_snrs)
    assert costs.shape == (200, 201) and bool(costs[torch.ones_like(costs).tril().bool()].isinf().all())
    for first, second in ((20, 60), (60, 150), (100, 199), (150, 190)):
        (alpha, sigma), (alpha_then, sigma_then) = (
            alpha_sigma(log_snrs[number : number + 1].double()) for number in (first, second)
        )
        spread, spread_then = ((a**2 * 0.1**2 + s**2).sqrt() for a, s in ((alpha, sigma), (alpha_then, sigma_then)))
        x = alpha * 0.4 + spread / log_snr_spread(log_snrs) * (start.double() - log_snr_alpha(log_snrs) * 0.4)
        exact = alpha_then * 0.4 + spread_then / spread * (x - alpha * 0.4)
        x0 = DENOISE(x, log_snrs[first].double().expand(64))
        stepped = alpha_then * x0 + sigma_then * (x - alpha * x0) / sigma
        wanted = ((stepped - exact) / alpha_then).square().mean(dim=(1, 2, 3)).sqrt().mean()
        assert float(costs[first, second]) == pytest.approx(float(wanted), rel=0.05, abs=2e-4)


def log_snr_alpha(log_snrs: Tensor) -> Tensor:
    return alpha_sigma(log_snrs[:1].double())[0]


def log_snr_spread(log_snrs: Tensor) -> Tensor:
    alpha, sigma = alpha_sigma(log_snrs[:1].double())
    return (alpha**2 * 0.1**2 + sigma**2).sqrt()


@pytest.mark.parametrize("steps", [3, 5, 8])
def test_fitted_levels_are_better_than_even_ones(steps: int) -> None:
    config, start = DiffusionConfig(), normal(256, 1, 1, 1)
    levels = evaluation_log_snrs(config, 60)
    chosen = choose_levels(measure_steps(DENOISE, start, levels), steps)
    fitted = evaluation_log_snrs(config, 1, log_snrs=[float(levels[number]) for number in chosen])
    wanted = ddim(DENOISE, start, evaluation_log_snrs(config, 1000), torch.zeros)
    errors = [
        float((ddim(DENOISE, start, at, torch.zeros) - wanted).square().mean().sqrt())
        for at in (fitted, evaluation_log_snrs(config, steps))
    ]
    assert errors[0] < 0.8 * errors[1] and math.isfinite(errors[0]), errors
