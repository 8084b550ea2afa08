"""The weights of DEIS against integrals, and the bound on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.gaussian import exact_denoiser
from train.diffusion.samplers import MOST_WEIGHT, SAMPLERS, _bounded_deis_weights, _deis_weights, follow
from train.diffusion.schedules import alpha_sigma


def test_weights_of_deis_are_integrals_of_lagrange_polynomials() -> None:
    from scipy.integrate import quad

    def time(ratio: float) -> float:
        return math.sqrt(math.log1p(ratio**2))  # sqrt(-log alpha^2) at sigma / alpha

    for levels, then in (([-9.0], -4.0), ([-4.0, -9.0], 0.5), ([1.0, -1.0, -4.0, -18.0], 3.0), ([7.0, 5.0, 2.0], 9.0)):
        begin, end = math.exp(-levels[0] / 2), math.exp(-then / 2)
        nodes = [time(math.exp(-level / 2)) for level in levels]
        for index, found in enumerate(_deis_weights(levels, then)):

            def polynomial(ratio: float, own: int = index, nodes: list[float] = nodes) -> float:
                others = [node for place, node in enumerate(nodes) if place != own]
                return math.prod((time(ratio) - other) / (nodes[own] - other) for other in others)

            wanted, _ = quad(polynomial, begin, end, epsabs=1e-12)
            assert found == pytest.approx(wanted / (end - begin), abs=1e-8)


def test_a_step_of_deis_amplifies_errors_within_a_bound() -> None:
    equal = [-math.log(math.expm1(time**2)) for time in (1.0, 1.1, 1.2, 1.3)]  # in the time of the linear schedule
    then = -math.log(math.expm1(0.9**2))
    assert _bounded_deis_weights(equal, then) == _deis_weights(equal, then)  # order 4 stays
    for then, order in ((0.1, 3), (2.0, 2), (4.0, 1)):
        found = _bounded_deis_weights(equal, then)
        assert found == [*_deis_weights(equal[:order], then), *[0.0] * (4 - order)]
        assert sum(map(abs, found)) <= MOST_WEIGHT < sum(map(abs, _deis_weights(equal[: order + 1], then)))
    assert _bounded_deis_weights([0.0, -0.01, -0.02, -0.03], 10.0) == [1.0, 0.0, 0.0, 0.0]
    assert _bounded_deis_weights(equal[:1], 9.0) == [1.0]


def test_deis_lowers_its_order_where_a_step_is_long() -> None:
    start, mean, std = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1), 0.4, 0.3
    log_snrs = torch.tensor([-6.0, -3.0, -2.0, -1.9, -1.8, -1.7, 4.0], dtype=torch.float64)
    exact = exact_denoiser(mean, std)

    def disturbed(x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        """Errs by 1% of the noise, to either side by turns."""
        sign = 1 if round(float(log_snr_B[0]) * 10) % 2 else -1
        alpha, sigma = alpha_sigma(log_snr_B[:1])
        return exact(x_BCHW, log_snr_B) + sign * 0.01 * sigma / alpha

    reached = follow(SAMPLERS["deis"], disturbed, start, log_snrs, torch.zeros)
    assert (reached - follow(SAMPLERS["deis"], exact, start, log_snrs, torch.zeros)).abs().max() < 0.05
