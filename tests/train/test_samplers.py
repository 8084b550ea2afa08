"""Samplers and guidance against independent references: closed forms in float64, diffusers, exactly known data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.diffusion.guidance import Denoiser, Interval, dynamic_threshold, guided_denoiser, rescale
from train.diffusion.inpainting import noisier, repaint
from train.diffusion.samplers import SAMPLERS, posterior, sampling_log_snrs
from train.diffusion.schedules import (
    add_noise,
    alpha_sigma,
    cosine_log_snr,
    linear_log_snr,
    log_snr_at,
    target_of,
    x0_from,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noises(*shape: int) -> Callable[[int], Tensor]:
    return lambda step: normal(*shape, seed=100 + step)


def cosine(t: Tensor) -> Tensor:
    return log_snr_at(t, "cosine")


# ---------------------------------------------------------------------------------------------- closed forms


def test_scales_are_those_of_the_papers() -> None:
    t = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    alpha, sigma = alpha_sigma(cosine_log_snr(t))
    assert alpha.dtype == torch.float64
    angle = (t + 0.008) / 1.008 * math.pi / 2
    torch.testing.assert_close(alpha.flatten(), angle.cos(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma.flatten(), angle.sin(), rtol=1e-12, atol=1e-12)
    alpha, sigma = alpha_sigma(linear_log_snr(t))
    torch.testing.assert_close(alpha.flatten() ** 2, torch.exp(-1e-4 - 10 * t**2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma.flatten() ** 2, -torch.expm1(-1e-4 - 10 * t**2), rtol=1e-12, atol=1e-12)


def betas(count: int = 1000) -> Tensor:
    return torch.linspace(1e-4, 0.02, count, dtype=torch.float64)


def test_the_linear_schedule_is_the_discrete_one_made_continuous() -> None:
    # beta(t) = 0.1 + 19.9 t integrates to 0.1 t + 9.95 t^2; the form in use drops the linear term for 1e-4 + 10 t^2.
    product = torch.cumprod(1 - betas(), 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    apart = (linear_log_snr(t) - torch.log(product / (1 - product)))[100:].abs()
    assert float(apart.max()) < 0.2


def test_posterior_is_equation_7() -> None:
    product = torch.cumprod(1 - betas(), 0)
    x, x0 = normal(999, 1, 1, 1).double(), normal(999, 1, 1, 1, seed=1).double()
    log_snr = torch.log(product / (1 - product))
    mean, deviation = posterior(x, x0, log_snr[1:], log_snr[:-1])
    beta, before, now = betas()[1:], product[:-1], product[1:]
    wanted = (before.sqrt() * beta / (1 - now))[:, None, None, None] * x0
    wanted = wanted + ((1 - beta).sqrt() * (1 - before) / (1 - now))[:, None, None, None] * x
    torch.testing.assert_close(mean, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(deviation.flatten() ** 2, beta * (1 - before) / (1 - now), rtol=1e-9, atol=1e-12)


def test_a_step_to_more_noise_is_the_forward_process() -> None:
    now, then, x0 = torch.tensor([2.0]), torch.tensor([-1.0]), torch.full((20000, 1, 1, 1), 0.7)
    x = add_noise(x0, normal(20000, 1, 1, 1), now.expand(20000))
    found = noisier(x, now, then, normal(20000, 1, 1, 1, seed=1))
    alpha, sigma = alpha_sigma(then)
    assert abs(float(found.mean()) - 0.7 * float(alpha)) < 0.02
    assert abs(float(found.std()) - float(sigma)) < 0.02


# ---------------------------------------------------------------------------------------------- diffusers


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

    kinds = {
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
def test_each_step_is_that_of_diffusers(name: str, steps: int) -> None:
    pytest.importorskip("diffusers")
    scheduler, log_snrs = diffusers_scheduler(name, steps)
    net, start, noise = Net(), normal(2, 3, 8, 8), noises(2, 3, 8, 8)
    theirs, x = [], start
    for step, timestep in enumerate(scheduler.timesteps):
        theirs.append(x)
        options = {"variance_noise": noise(step)} if name == "dpmpp_2m_sde" else {}
        x = scheduler.step(net(x, log_snrs[step]), timestep, x, **options).prev_sample
    theirs.append(x)
    ours: list[Tensor] = []

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        ours.append(x)
        return x0_from("eps", net(x, at[0]), x, at)

    ours.append(SAMPLERS[name](denoise, start, log_snrs, noise))  # type: ignore[index]
    assert len(ours) == len(theirs) == steps + 1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- known data


def exact(mean: float, std: float) -> Denoiser:
    """The exact denoiser of data ~ N(mean, std^2)."""

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(at)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    return denoise


@pytest.mark.parametrize("spacing", ["time", "log_snr", "karras"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_more_evaluations_come_nearer_to_the_true_distribution(name: str, spacing: str) -> None:
    errors = []
    for steps in (6, 400):
        log_snrs = sampling_log_snrs(cosine, steps, spacing)  # type: ignore[arg-type]
        x = SAMPLERS[name](exact(0.4, 0.3), normal(20000, 1, 1, 1), log_snrs, noises(20000, 1, 1, 1))  # type: ignore[index]
        errors.append(max(abs(float(x.mean()) - 0.4), abs(float(x.std()) - 0.3)))
    assert errors[1] < 0.012 and errors[1] < errors[0] + 0.005


def test_orders_of_convergence() -> None:
    start, wanted = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1), torch.linspace(-2, 2, 9) * 0.3 + 0.4
    error = {}
    for name in ("ddim", "dpmpp_2m", "unipc"):
        for steps in (10, 40):
            found = SAMPLERS[name](exact(0.4, 0.3), start, sampling_log_snrs(cosine, steps), lambda step: start)
            error[name, steps] = float((found.flatten() - wanted).abs().max())
    assert error["unipc", 10] < error["dpmpp_2m", 10] < error["ddim", 10]
    for name, least in (("ddim", 2.5), ("dpmpp_2m", 4)):
        assert error[name, 10] / error[name, 40] > least, error


def test_spacings() -> None:
    for spacing in ("time", "log_snr", "karras"):
        for start in (1.0, 0.4):
            values = sampling_log_snrs(cosine, 9, spacing, start)  # type: ignore[arg-type]
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


# ---------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_guidance_is_equation_2_in_every_prediction(prediction: str) -> None:
    x, at = normal(2, 3, 4, 4), torch.tensor([-0.5, -0.5])
    with_text, without = normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)  # eps of the two halves

    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        eps = torch.cat([with_text, without])
        return target_of(prediction, x0_from("eps", eps, x, at), eps, at)  # type: ignore[arg-type]

    found = guided_denoiser(model, prediction, 4.0, "none")(x, at)  # type: ignore[arg-type]
    eps = 4.0 * with_text.numpy() - 3.0 * without.numpy()  # w eps(z, c) + (1 - w) eps(z)
    alpha, sigma = math.sqrt(1 / (1 + math.exp(0.5))), math.sqrt(1 / (1 + math.exp(-0.5)))
    np.testing.assert_allclose(found.numpy(), (x.numpy() - sigma * eps) / alpha, rtol=2e-4, atol=2e-4)


def test_dynamic_threshold_is_the_code_of_the_paper() -> None:
    x0 = normal(3, 3, 8, 8) * torch.tensor([0.2, 1.0, 5.0]).view(3, 1, 1, 1)
    for percentile in (0.9, 0.995):
        wanted = []
        for image in x0.numpy():  # A.32, line by line
            s = np.percentile(np.abs(image).reshape(-1), 100 * percentile)
            s = np.maximum(s, 1.0)
            wanted.append(np.clip(image, -s, s) / s)
        np.testing.assert_allclose(dynamic_threshold(x0, percentile).numpy(), np.stack(wanted), rtol=1e-5, atol=1e-6)


def test_rescale_takes_contrast_back() -> None:
    conditional, guided = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1) * 3
    whole = rescale(guided, conditional, 1.0)
    torch.testing.assert_close(whole.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))
    torch.testing.assert_close(rescale(guided, conditional, 0.3), 0.3 * whole + 0.7 * guided)
    assert torch.equal(rescale(guided, conditional, 0.0), guided)
    assert bool(rescale(torch.zeros(1, 3, 2, 2), conditional[:1], 1.0).isfinite().all())


def test_guidance_is_off_outside_of_its_interval() -> None:
    rows: list[int] = []

    def model(x: Tensor, at: Tensor, keep: Tensor) -> Tensor:
        rows.append(len(x))
        return torch.where(keep.view(-1, 1, 1, 1), 0.2, 0.1).expand_as(x)

    denoise = guided_denoiser(model, "x0", 3.0, interval=Interval(-1.0, 2.0))
    values = [float(denoise(normal(2, 1, 2, 2), torch.full((2,), at))[0, 0, 0, 0]) for at in (-3.0, -1.0, 2.0, 2.5)]
    assert rows == [2, 4, 4, 2]
    assert values == pytest.approx([0.2, 0.4, 0.4, 0.2])


# ---------------------------------------------------------------------------------------------- inpainting


def correlated(rho: float) -> Denoiser:
    """The exact denoiser of two pixels ~ N(0, [[1, rho], [rho, 1]])."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in alpha_sigma(at[:1]))
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        return (x.flatten(1) @ gain.T).view_as(x)

    return denoise


def test_repaint_draws_what_goes_with_what_is_known() -> None:
    known, hidden = torch.tensor([1.5, -9.0]).view(1, 1, 1, 2), torch.tensor([False, True]).view(1, 1, 1, 2)
    log_snrs, means = sampling_log_snrs(cosine, 30), {}
    for resample in (1, 10):
        start = normal(3000, 1, 1, 2)
        found = repaint(correlated(0.8), start, log_snrs, noises(3000, 1, 1, 2), known, hidden, resample)
        assert torch.equal(found[..., 0], known[..., 0].expand(3000, 1, 1))
        means[resample] = float(found[..., 1].mean())
    assert abs(means[10] - 0.8 * 1.5) < 0.1  # of the conditional distribution, whatever the hidden pixel held
    assert abs(means[10] - 1.2) < abs(means[1] - 1.2)


def test_repaint_counts_its_evaluations() -> None:
    calls: list[int] = []

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        calls.append(1)
        return torch.zeros_like(x)

    hidden = torch.tensor([[True, False]]).view(1, 1, 1, 2)
    arguments = (denoise, normal(1, 1, 1, 2), sampling_log_snrs(cosine, 5), noises(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert repaint(*arguments, hidden, 3).flatten().tolist() == [0.0, 1.0]
    assert len(calls) == 4 * 3 + 1
    with pytest.raises(ValueError, match="resample 0 is too few"):
        repaint(*arguments, hidden, 0)
