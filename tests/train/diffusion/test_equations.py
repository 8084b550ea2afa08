"""The equations of docs/diffusion.md by their numbers, where no other test has them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.gaussian import exact_denoiser, normal
from tests.helpers.paths import ROOT
from train.beta_schedule import BetaSchedule
from train.diffusion.config import DiffusionConfig, ScheduleName
from train.diffusion.inpainting import add_forward_noise
from train.diffusion.objective import denoising_loss, noise_images
from train.diffusion.samplers import learned_std, posterior_mean_std
from train.diffusion.schedules import (
    SCHEDULES,
    add_noise,
    alpha_sigma,
    eps_from_x0,
    log_snr_at,
    log_snr_slope,
    network_input,
    prediction_target,
)

TIMES = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
MEAN, STD = 0.2, 0.5
CONTINUOUS: tuple[ScheduleName, ...] = ("cosine", "linear", "flow")


def scales(schedule: ScheduleName, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns alpha, sigma and -dλ/dt at times in float64, all (N,)."""
    exact = SCHEDULES[schedule](t, BetaSchedule())
    alpha, sigma = (part.flatten() for part in alpha_sigma(exact))
    return alpha, sigma, log_snr_slope(exact, schedule)


def derivative(function: object, t: Tensor, step: float = 1e-5) -> Tensor:
    assert callable(function)
    found: Tensor = (function(t + step) - function(t - step)) / (2 * step)
    return found


def exact_score(x: Tensor, at: Tensor) -> Tensor:
    """Of x_t for data ~ N(MEAN, STD²)."""
    alpha, sigma = alpha_sigma(at)
    return -(x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)


def test_equation_1_alpha_and_sigma() -> None:
    at = torch.linspace(-8, 8, 9, dtype=torch.float64)
    alpha, sigma = alpha_sigma(at)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close((alpha**2 / sigma**2).log().flatten(), at)


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_equation_2_the_sde_has_the_moments_of_the_process(schedule: ScheduleName) -> None:
    """dm/dt = f m and dv/dt = 2 f v + g² hold for m = alpha and v = sigma²."""
    alpha, sigma, slope = scales(schedule, TIMES)
    f, g2 = -slope * sigma**2 / 2, slope * sigma**2
    torch.testing.assert_close(derivative(lambda t: scales(schedule, t)[0], TIMES), f * alpha, rtol=1e-5, atol=1e-7)
    variance = derivative(lambda t: scales(schedule, t)[1] ** 2, TIMES)
    torch.testing.assert_close(variance, 2 * f * sigma**2 + g2, rtol=1e-5, atol=1e-7)


def test_equation_3_two_transitions_are_one() -> None:
    """From the clean image in two steps: mean alpha x_0, variance sigma²."""
    x0, now, then = normal(9, 1, 1, 1).double(), torch.full((9,), 2.0).double(), torch.full((9,), -1.0).double()
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    alpha_now, sigma_now = alpha_sigma(now)
    alpha, sigma = alpha_sigma(then)
    torch.testing.assert_close(add_forward_noise(alpha_now * x0, now, then, zero), alpha * x0)
    kept, added = add_forward_noise(sigma_now * one, now, then, zero), add_forward_noise(zero, now, then, one)
    torch.testing.assert_close(kept**2 + added**2, sigma**2)


def test_equation_4_is_bayes_rule_on_equation_3() -> None:
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): a product of two normal distributions in x_s."""
    x0, x = normal(5, 1, 1, 1).double(), normal(5, 1, 1, 1, seed=1).double()
    now, then = torch.full((5,), -0.5).double(), torch.full((5,), 1.5).double()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(now), alpha_sigma(then)
    a = alpha_t / alpha_s
    left = sigma_t**2 - (a * sigma_s) ** 2
    precision = a**2 / left + 1 / sigma_s**2
    mean, deviation = posterior_mean_std(x, x0, now, then)
    torch.testing.assert_close(deviation, precision.rsqrt().expand_as(deviation))
    torch.testing.assert_close(mean, (a * x / left + alpha_s * x0 / sigma_s**2) / precision)


def test_equation_5_the_score_of_the_denoiser() -> None:
    x, at = normal(7, 1, 2, 2), torch.linspace(-4, 4, 7)
    alpha, sigma = alpha_sigma(at)
    x0_hat = exact_denoiser(MEAN, STD)(x, at)
    torch.testing.assert_close(-(x - alpha * x0_hat) / sigma**2, exact_score(x, at), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-eps_from_x0(x0_hat, x, at) / sigma, exact_score(x, at), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_equation_6_the_ode_in_s_is_that_in_t(schedule: ScheduleName) -> None:
    at = SCHEDULES[schedule](TIMES, BetaSchedule())
    alpha, sigma, slope = (part.view(-1, 1, 1, 1) for part in scales(schedule, TIMES))
    x = normal(9, 1, 2, 2).double()
    f, g2 = -slope * sigma**2 / 2, slope * sigma**2
    in_t = f * x - g2 * exact_score(x, at) / 2
    in_s = alpha * (alpha * x - exact_denoiser(MEAN, STD)(x, at))
    torch.testing.assert_close(in_t, in_s * slope / 2)  # ds/dt = -λ'/2


def test_equation_7_and_8_the_flow_path() -> None:
    x0, noise, t = normal(9, 1, 2, 2), normal(9, 1, 2, 2, seed=1), TIMES.float()
    at, share = log_snr_at(t, "flow"), TIMES.float().view(-1, 1, 1, 1)
    z = network_input(add_noise(x0, noise, at), at, "flow")
    torch.testing.assert_close(z, (1 - share) * x0 + share * noise)
    torch.testing.assert_close((at / -2).sigmoid(), t)
    torch.testing.assert_close(prediction_target("velocity", x0, noise, at), (z - x0) / share, rtol=1e-4, atol=1e-4)


def test_equation_9_errors_of_every_prediction() -> None:
    at = torch.linspace(-3, 3, 7)
    x0, x, wrong = normal(7, 1, 2, 2), normal(7, 1, 2, 2, seed=1), normal(7, 1, 2, 2, seed=2)
    snr = at.exp().view(-1, 1, 1, 1)

    def outputs(clean: Tensor, prediction: str) -> Tensor:
        return prediction_target(prediction, clean, eps_from_x0(clean, x, at), at)  # type: ignore[arg-type]

    error = (wrong - x0).square()
    factors = {"eps": snr, "v": snr + 1, "velocity": (snr.sqrt() + 1).square()}
    for prediction, factor in factors.items():
        apart = (outputs(wrong, prediction) - outputs(x0, prediction)).square()
        torch.testing.assert_close(apart / factor, error, rtol=1e-3, atol=1e-4)


def chain_divergence(x0: Tensor, x0_hat: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """KL between the posteriors with the true and with the predicted clean image, summed over dimensions."""
    x = normal(*x0.shape, seed=5).double()
    true, deviation = posterior_mean_std(x, x0, now, then)
    found, _ = posterior_mean_std(x, x0_hat, now, then)
    return ((true - found) ** 2 / (2 * deviation**2)).sum(dim=(1, 2, 3))


def test_equation_11_a_step_of_the_discrete_bound() -> None:
    x0, x0_hat = normal(4, 1, 2, 2).double(), normal(4, 1, 2, 2, seed=1).double()
    now, then = torch.tensor([-3.0, -1, 0, 2]).double(), torch.tensor([-2.0, 1, 0.5, 6]).double()
    error = (x0 - x0_hat).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(chain_divergence(x0, x0_hat, now, then), (then.exp() - now.exp()) * error / 2)


def test_equation_12_many_steps_of_the_chain_are_the_integral() -> None:
    """For an error that depends on the noise level as that of Gaussian data does."""
    ends, errors = (-6.0, 6.0), []

    def error(at: Tensor) -> Tensor:
        return STD**2 / (1 + STD**2 * at.exp())

    exact = (math.log1p(STD**2 * math.exp(ends[1])) - math.log1p(STD**2 * math.exp(ends[0]))) / 2
    for steps in (10, 100, 1000):
        points = torch.linspace(*ends, steps + 1, dtype=torch.float64)
        chain = (points[1:].exp() - points[:-1].exp()) * error(points[:-1]) / 2
        errors.append(float(chain.sum()) - exact)
    assert errors[0] > 0 and errors[2] == pytest.approx(errors[0] / 100, rel=0.5)
    assert errors[2] < 0.02


def test_equation_13_the_divergence_of_the_ode() -> None:
    """Against the derivative of the known density along a path of the ODE."""
    denoise, s = exact_denoiser(MEAN, STD), torch.linspace(-3, 3, 7, dtype=torch.float64)
    at = -2 * s
    alpha, sigma = (part.flatten() for part in alpha_sigma(at))
    gain = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)  # d x̂_0 / dx
    x = normal(7, 1, 1, 1).double()
    slope = alpha * (alpha * x.flatten() - denoise(x, at).flatten())

    def log_density(shift: float) -> Tensor:
        a, d = (part.flatten() for part in alpha_sigma(-2 * (s + shift)))
        there = torch.distributions.Normal(a * MEAN, ((a * STD) ** 2 + d**2).sqrt())
        return there.log_prob(x.flatten() + shift * slope)

    along = (log_density(1e-5) - log_density(-1e-5)) / 2e-5
    torch.testing.assert_close(along, -(alpha**2 - alpha * gain), rtol=1e-4, atol=1e-6)


def test_equation_14_the_learned_variance() -> None:
    now, then = torch.tensor([-3.0, -1, 2]).double(), torch.tensor([-2.0, 1, 6]).double()
    zeros = torch.zeros(3, 1, 1, 1).double()
    (alpha_t, _), (alpha_s, _) = alpha_sigma(now), alpha_sigma(then)
    largest = (1 - (alpha_t / alpha_s) ** 2).log()
    least = 2 * posterior_mean_std(zeros, zeros, now, then)[1].log()
    for v in (-1.0, -0.4, 0.0, 1.0, 1.3):
        expected = (1 + v) / 2 * largest + (1 - v) / 2 * least
        torch.testing.assert_close(2 * learned_std(zeros + v, now, then).double().log(), expected, rtol=1e-4, atol=1e-4)


def test_equation_15_the_hybrid_loss() -> None:
    """The mean over all times is the plain loss and the weighted sum of the chain's divergences, by torch's own KL."""
    config = DiffusionConfig(prediction="x0", variance_weight=0.01, variance_steps=50)
    t = (torch.arange(400) + 0.5) / 400
    x0 = normal(1, 3, 4, 4).expand(400, -1, -1, -1)
    noised = noise_images(x0, t, normal(400, 3, 4, 4, seed=1), config)
    output = torch.cat([normal(400, 3, 4, 4, seed=2) / 3, normal(400, 3, 4, 4, seed=3)], dim=1)
    loss_B, x0_hat = denoising_loss(lambda x, at: output, noised, config)
    divergences = []
    for row in range(8, 400):  # not the last step of the chain
        now, then = noised.log_snr_B[row : row + 1], log_snr_at(t[row : row + 1].double() - 1 / 50, config.schedule)
        means, deviation = [], torch.zeros(())
        for clean in (x0[row], x0_hat[row]):
            mean, deviation = posterior_mean_std(noised.x_BCHW[row : row + 1], clean[None], now, then)
            means.append(mean)
        true, found = (
            torch.distributions.Normal(mean, std)
            for mean, std in zip(means, (deviation, learned_std(output[row : row + 1, 3:], now, then)), strict=True)
        )
        divergences.append(torch.distributions.kl_divergence(true, found).mean())
    total = 50 * torch.stack(divergences).sum() / 400
    plain = (output[:, :3] - x0).square().mean()
    torch.testing.assert_close(loss_B.mean(), plain + 0.01 * total, rtol=1e-4, atol=1e-5)


def test_every_equation_has_a_test() -> None:
    text = (ROOT / "docs/diffusion.md").read_text(encoding="utf-8")
    numbers = [int(line.split(")")[0].strip()[1:]) for line in text.splitlines() if line.startswith("    (")]
    assert numbers == list(range(1, 16))
    tested = " ".join(name for name in globals() if name.startswith("test_equation_"))
    by_others = {10: "test_likelihood.py"}  # the sum of the parts that are tested there
    assert [n for n in numbers if n not in by_others and f"_{n}_" not in f"{tested}_"] == []
