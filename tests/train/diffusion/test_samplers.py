"""Samplers against independent references: closed forms in float64, diffusers, known data."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.gaussian import cosine, exact_denoiser, normal, step_noise
from train.diffusion.config import SamplerName, Spacing
from train.diffusion.guidance import GuidedDenoiser
from train.diffusion.samplers import (
    ADAMS_BASHFORTH,
    PER_ROW,
    SAMPLERS,
    find_sampler,
    follow,
    learned_std,
    posterior_mean_std,
    sampling_log_snrs,
)
from train.diffusion.schedules import (
    alpha_sigma,
    log_snr_at,
    network_input,
    x0_from_output,
)


def betas(count: int = 1000) -> Tensor:
    return torch.linspace(1e-4, 0.02, count, dtype=torch.float64)


def test_posterior_is_equation_7() -> None:
    product = torch.cumprod(1 - betas(), 0)
    x, x0 = normal(999, 1, 1, 1).double(), normal(999, 1, 1, 1, seed=1).double()
    log_snr = torch.log(product / (1 - product))
    mean, deviation = posterior_mean_std(x, x0, log_snr[1:], log_snr[:-1])
    beta, before, now = betas()[1:], product[:-1], product[1:]
    wanted = (before.sqrt() * beta / (1 - now))[:, None, None, None] * x0
    wanted = wanted + ((1 - beta).sqrt() * (1 - before) / (1 - now))[:, None, None, None] * x
    torch.testing.assert_close(mean, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(deviation.flatten() ** 2, beta * (1 - before) / (1 - now), rtol=1e-9, atol=1e-12)


class Net(nn.Module):
    """A network of no use but to be the same on both sides: it predicts eps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))

    @torch.no_grad()
    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        output: Tensor = self.layers(x) + torch.sigmoid(-log_snr).sqrt() * x
        return output


def diffusers_scheduler(name: str, steps: int) -> tuple[Any, Tensor]:
    """A scheduler of diffusers for the same betas, and the log-SNRs that it visits."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
        "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        "unipc": (UniPCMultistepScheduler, {"solver_order": 3, "solver_type": "bh2"}),
    }
    kind, options = kinds[name]
    if name != "ddim":
        options |= {"final_sigmas_type": "zero"}
    scheduler = kind(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="leading", **options)
    scheduler.set_timesteps(steps)
    product = scheduler.alphas_cumprod[scheduler.timesteps].double()
    # The last one, clean, is not used: the last evaluation's clean image is the result.
    return scheduler, torch.cat([torch.log(product / (1 - product)), torch.tensor([30.0])]).float()


@pytest.mark.parametrize("steps", [5, 8, 20])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_each_step_is_that_of_diffusers(name: SamplerName, steps: int) -> None:
    pytest.importorskip("diffusers")
    scheduler, log_snrs = diffusers_scheduler(name, steps)
    net, start, noise = Net(), normal(2, 3, 8, 8), step_noise(2, 3, 8, 8)
    theirs, x = [], start
    for step, timestep in enumerate(scheduler.timesteps):
        theirs.append(x)
        options = {"variance_noise": noise(step)} if name == "dpmpp_2m_sde" else {}
        x = scheduler.step(net(x, log_snrs[step]), timestep, x, **options).prev_sample
    theirs.append(x)
    ours: list[Tensor] = []

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        ours.append(x)
        return x0_from_output("eps", net(x, at[0]), x, at)

    ours.append(SAMPLERS[name](denoise, start, log_snrs, noise))
    assert len(ours) == len(theirs) == steps + 1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_each_step_of_ipndm_is_that_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    from diffusers import IPNDMScheduler

    steps, sigmas = 9, torch.linspace(0.999, 0.05, 9, dtype=torch.float64)
    scheduler: Any = IPNDMScheduler(trained_betas=[*sigmas.tolist(), 0.0])
    scheduler.set_timesteps(steps)
    log_snrs = torch.cat([torch.log((1 - sigmas**2) / sigmas**2), torch.tensor([30.0])]).float()
    net, start = Net(), normal(2, 3, 8, 8)
    theirs, x = [], start
    for step, timestep in enumerate(scheduler.timesteps[:steps]):
        theirs.append(x)
        x = scheduler.step(net(x, log_snrs[step]), timestep, x).prev_sample
    ours: list[Tensor] = []

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        ours.append(x)
        return x0_from_output("v", net(x, at[0]), x, at)  # what that scheduler takes a network to predict

    SAMPLERS["ipndm"](denoise, start, log_snrs, torch.zeros)
    assert len(ours) == len(theirs) == steps
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def exact_point(start: Tensor, log_snrs: Tensor, mean: float, std: float) -> Tensor:
    """Returns where the ODE ends that begins at ``start``, for data ~ N(mean, std^2): quantiles stay what they are."""
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(log_snrs[:1]), alpha_sigma(log_snrs[-1:])
    spread, spread_then = ((a**2 * std**2 + b**2).sqrt() for a, b in ((alpha, sigma), (alpha_then, sigma_then)))
    return alpha_then * mean + spread_then / spread * (start - alpha * mean)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("unipc", 3), ("ipndm", 2), ("deis", 4)])
def test_the_error_falls_by_the_order_of_the_sampler(name: str, order: int) -> None:
    # From so much noise that first steps, of lower order, do no harm; evenly in the time of the linear schedule.
    start, errors = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1, 1), []
    for steps in (128, 256):
        times = torch.linspace(3.4, 0.8, steps + 1, dtype=torch.float64)
        log_snrs = -(times.square().expm1()).log()
        reached = follow(SAMPLERS[name], exact_denoiser(0.4, 0.3), start, log_snrs, torch.zeros)
        errors.append(float((reached - exact_point(start, log_snrs, 0.4, 0.3)).abs().max()))
    assert order - 0.3 < math.log2(errors[0] / errors[1]) < order + 0.5, errors


def test_weights_of_equal_steps_integrate_polynomials() -> None:
    for count, weights in enumerate(ADAMS_BASHFORTH, 1):
        for power in range(count):
            value = sum(weight * (-float(place)) ** power for place, weight in enumerate(weights))
            assert value == pytest.approx(1 / (power + 1))  # the integral of t^power over a step from 0 to 1


@pytest.mark.parametrize("name", sorted(PER_ROW))
def test_rows_may_have_levels_of_their_own(name: str) -> None:
    levels = torch.stack([torch.linspace(low, high, 6) for low, high in ((-9.0, 2.0), (-2.0, 7.0), (0.0, 1.0))], dim=1)
    start, denoise = normal(3, 1, 2, 2), exact_denoiser(0.4, 0.3)
    together = SAMPLERS[name](denoise, start, levels, torch.zeros)
    for row in range(3):
        alone = SAMPLERS[name](denoise, start[row : row + 1], levels[:, row], torch.zeros)
        torch.testing.assert_close(together[row : row + 1], alone)
    reached = follow(SAMPLERS[name], denoise, start, levels, torch.zeros)
    torch.testing.assert_close(
        denoise(reached, levels[-1]), SAMPLERS[name](denoise, start, extend(levels), torch.zeros)
    )


def extend(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels[-1:] + 1])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers_reach_the_data_distribution(name: SamplerName) -> None:
    steps = 200
    log_snrs = sampling_log_snrs(cosine, steps)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4000, 1, 1, 1, generator=generator)
    x = find_sampler(name)(
        exact_denoiser(0.4, 0.3), start, log_snrs, lambda step: torch.randn(4000, 1, 1, 1, generator=generator)
    )
    assert abs(float(x.mean()) - 0.4) < 0.02
    assert abs(float(x.std()) - 0.3) < 0.02


def test_second_order_beats_first_order() -> None:
    start, exact = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1), torch.linspace(-2, 2, 9) * 0.3 + 0.4
    denoise = exact_denoiser(0.4, 0.3)
    error = {}
    names: tuple[SamplerName, ...] = ("ddim", "dpmpp_2m")
    for name in names:
        log_snrs = sampling_log_snrs(cosine, 20)
        found = SAMPLERS[name](denoise, start, log_snrs, lambda step: start)
        error[name] = float((found.flatten() - exact).abs().max())
    assert error["dpmpp_2m"] < error["ddim"] < 0.1


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers_evaluate_once_per_step(name: SamplerName) -> None:
    for steps in (1, 2, 7):
        calls: list[float] = []

        def denoise(x: Tensor, at: Tensor, calls: list[float] = calls) -> Tensor:
            calls.append(float(at[0]))
            return torch.full_like(x, 0.5)

        log_snrs = sampling_log_snrs(cosine, steps)
        found = SAMPLERS[name](denoise, normal(2, 3, 2, 2), log_snrs, lambda step: normal(2, 3, 2, 2, seed=step))
        assert len(calls) == steps and calls == sorted(calls)
        assert torch.equal(found, torch.full_like(found, 0.5))


@pytest.mark.parametrize("spacing", ["time", "log_snr", "karras"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_more_evaluations_approach_the_true_distribution(name: SamplerName, spacing: Spacing) -> None:
    errors = []
    for steps in (6, 400):
        log_snrs = sampling_log_snrs(cosine, steps, spacing)
        x = SAMPLERS[name](exact_denoiser(0.4, 0.3), normal(20000, 1, 1, 1), log_snrs, step_noise(20000, 1, 1, 1))
        errors.append(max(abs(float(x.mean()) - 0.4), abs(float(x.std()) - 0.3)))
    assert errors[1] < 0.012 and errors[1] < errors[0] + 0.005


def test_orders_of_convergence() -> None:
    start, wanted = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1), torch.linspace(-2, 2, 9) * 0.3 + 0.4
    error = {}
    names: tuple[SamplerName, ...] = ("ddim", "dpmpp_2m", "unipc")
    for name in names:
        for steps in (10, 40):
            found = SAMPLERS[name](
                exact_denoiser(0.4, 0.3), start, sampling_log_snrs(cosine, steps), lambda step: start
            )
            error[name, steps] = float((found.flatten() - wanted).abs().max())
    assert error["unipc", 10] < error["dpmpp_2m", 10] < error["ddim", 10]
    for name, least in (("ddim", 2.5), ("dpmpp_2m", 4)):
        assert error[name, 10] / error[name, 40] > least, error


def test_spacings() -> None:
    for spacing in get_args(Spacing):
        for start in (1.0, 0.4):
            values = sampling_log_snrs(cosine, 9, spacing, start)
            assert values.shape == (10,) and values.dtype == torch.float32 and bool((values.diff() > 0).all())
            assert start == 1.0 or float(values[0]) == pytest.approx(float(cosine(torch.tensor(0.4))), abs=1e-4)
    even = sampling_log_snrs(cosine, 9, "log_snr").diff()
    torch.testing.assert_close(even, even[:1].expand(9), atol=1e-3, rtol=1e-3)
    roots = (-sampling_log_snrs(cosine, 9, "karras").double() / 14).exp().diff()
    torch.testing.assert_close(roots, roots[:1].expand(9), atol=1e-4, rtol=1e-3)
    # Clamped at -20 over its first part, the schedule stands still there: one value of those is left.
    still = sampling_log_snrs(lambda t: log_snr_at(t, "cosine", -10.0), 1000)
    assert len(still) < 1001 and bool((still.diff() > 0).all())
    with pytest.raises(ValueError, match="spacing 'even' is unknown"):
        sampling_log_snrs(cosine, 9, "even")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start 0 is not in"):
        sampling_log_snrs(cosine, 9, start=0)


def exact_velocity(mean: float, std: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns E[eps - x_0 | z_t] of data ~ N(mean, std^2) on z_t = (1 - t) x_0 + t eps, as a flow network would."""

    def predict(z: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        z = network_input(z, at, "flow")
        t = (at / -2).sigmoid().view(-1, 1, 1, 1)
        gain = ((1 - t) * std**2) / (((1 - t) * std) ** 2 + t**2)
        x0 = mean + gain * (z - (1 - t) * mean)
        return (z - x0) / t

    return predict


def flow(t: Tensor) -> Tensor:
    return log_snr_at(t, "flow")


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("spacing", ["time", "log_snr"])
def test_samplers_reach_the_data_along_the_flow_path(name: SamplerName, spacing: Spacing) -> None:
    denoise = GuidedDenoiser(exact_velocity(0.4, 0.3), "velocity", 1.0, "none")
    log_snrs = sampling_log_snrs(flow, 200, spacing)
    x = SAMPLERS[name](denoise, normal(20000, 1, 1, 1), log_snrs, step_noise(20000, 1, 1, 1))
    assert abs(float(x.mean()) - 0.4) < 0.012 and abs(float(x.std()) - 0.3) < 0.012


def test_ddim_takes_eulers_steps_along_the_flow_path() -> None:
    times = torch.tensor([0.8, 0.55, 0.3, 0.05])
    predict, keep = exact_velocity(0.4, 0.3), torch.ones(5, dtype=torch.bool)
    z = normal(5, 3, 2, 2)
    alpha, sigma = alpha_sigma(flow(times[:1]))
    start = z * (alpha + sigma)  # from the flow's scale to that of the samplers
    for now, then in pairwise(times[:-1]):  # the last evaluation gives the clean image
        at = flow(now).expand(5)
        alpha, sigma = alpha_sigma(at)
        z = z + (then - now) * predict(z * (alpha + sigma), at, keep)
    at = flow(times[-2]).expand(5)
    alpha, sigma = alpha_sigma(at)
    wanted = z - times[-2] * predict(z * (alpha + sigma), at, keep)
    denoise = GuidedDenoiser(predict, "velocity", 1.0, "none")
    torch.testing.assert_close(SAMPLERS["ddim"](denoise, start, flow(times), torch.zeros), wanted, atol=1e-5, rtol=1e-4)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="sampler 'euler' is unknown; take one of ddpm, ddim, dpmpp_2m"):
        find_sampler("euler")
    with pytest.raises(ValueError, match="steps 0 is too few"):
        sampling_log_snrs(cosine, 0)


def test_a_learned_variance_lies_between_the_posteriors_and_beta() -> None:
    product = torch.cumprod(1 - betas(), 0)
    log_snr = torch.log(product / (1 - product))
    now, then = log_snr[[500, 900]], log_snr[[400, 899]]
    _, least = posterior_mean_std(normal(2, 1, 1, 1).double(), normal(2, 1, 1, 1).double(), now, then)
    beta = 1 - product[[500, 900]] / product[[400, 899]]
    ends = [learned_std(torch.full((2, 3, 2, 2), value), now, then)[:, 0, 0, 0].double() for value in (-1.0, 1.0)]
    torch.testing.assert_close(ends[0], least.flatten(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ends[1], beta.sqrt(), rtol=1e-5, atol=0)
    middle = learned_std(torch.zeros(2, 3, 2, 2), now, then)[:, 0, 0, 0].double()
    torch.testing.assert_close(middle, (ends[0] * ends[1]).sqrt(), rtol=1e-5, atol=0)  # between in logarithms


def test_ddpm_takes_the_learned_variance() -> None:
    class Denoiser:
        """Gives a clean image of zeros, and the largest variance in its first row of pixels, else the least."""

        def __call__(self, x: Tensor, at: Tensor) -> Tensor:
            raise AssertionError("asked without the variance")

        def predict_with_variance(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(x)
            return torch.zeros_like(x), torch.where(torch.arange(4)[:, None] == 0, 1.0, -1.0).expand_as(x)

    seen: list[Tensor] = []
    log_snrs = torch.tensor([-4.0, -1.0, 3.0])
    start = torch.zeros(500, 1, 4, 4)
    found = SAMPLERS["ddpm"](Denoiser(), start, log_snrs, lambda step: normal(500, 1, 4, 4, seed=step))
    assert float(found.abs().max()) == 0 and len(seen) == 2
    now, then = log_snrs[:1], log_snrs[1:2]
    beta = 1 - now.sigmoid() / then.sigmoid()
    _, least = posterior_mean_std(start[:1], start[:1], now, then)
    assert float(seen[1][:, :, 0].std()) == pytest.approx(float(beta.sqrt()), rel=0.05)
    assert float(seen[1][:, :, 1:].std()) == pytest.approx(float(least), rel=0.05)


def test_the_posterior_keeps_its_digits_over_a_long_step() -> None:
    now, then = torch.tensor([-19.8]), torch.tensor([-1.0])
    x, x0 = torch.full((1, 1, 1, 1), 3.0), torch.zeros(1, 1, 1, 1)
    mean, _ = posterior_mean_std(x, x0, now, then)
    exact, _ = posterior_mean_std(x.double(), x0.double(), now.double(), then.double())
    assert float(mean) == pytest.approx(float(exact), rel=1e-5)
