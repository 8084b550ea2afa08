"""The variational bound and the ODE's density against the entropy of Gaussian data, where the denoiser is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.gaussian import exact_denoiser, normal
from train.diffusion.config import DiffusionConfig, Prediction, ScheduleName
from train.diffusion.guidance import PredictX0
from train.diffusion.likelihood import (
    NATS_TO_BITS,
    PIXEL_STEP,
    BoundLevels,
    bound_levels,
    diffusion_nats,
    latent_nats,
    noise_latent,
    ode_nats,
    prior_nats,
    reconstruction_nats,
)
from train.diffusion.objective import diffusion_loss, log_snr_at_time
from train.diffusion.schedules import add_noise, alpha_sigma

MEAN, STD = 0.1, 0.3
ENTROPY = math.log2(STD * math.sqrt(2 * math.pi * math.e))
SCHEDULES: tuple[ScheduleName, ...] = ("cosine", "linear", "flow")


MANY = 20_000  # images


def standard_noise(count: int, seed: int) -> Tensor:
    """Returns normal noise (count, 1, 8, 8) with mean 0 and mean square 1 in each image: less chance in the means."""
    x = normal(count, 1, 8, 8, seed=seed)
    x = x - x.mean(dim=(1, 2, 3), keepdim=True)
    return x / x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def gaussian_data(count: int) -> Tensor:
    """Returns images whose mean negative log density is the entropy."""
    return standard_noise(count, 0) * STD + MEAN


def signs(*shape: int) -> Tensor:
    return normal(*shape, seed=7).sign()


def measure_bound(denoise: PredictX0, x0: Tensor, levels: BoundLevels, step: float | None) -> float:
    """Returns prior + integral + reconstruction in bits, every image at many levels."""
    count, noise = len(x0), standard_noise(len(x0), 1)
    at = torch.linspace(levels.least, levels.most, 2 * count + 1)[1::2]  # midpoints
    at = at[torch.randperm(count, generator=torch.Generator().manual_seed(3))]
    guess = denoise(add_noise(x0, noise, at), at)
    nats = diffusion_nats(x0, guess, at, levels.most - levels.least) + prior_nats(x0, levels.least)
    return float((nats + measure_reconstruction(denoise, x0, noise, levels, step)).mean()) * NATS_TO_BITS


def measure_reconstruction(
    denoise: PredictX0, x0: Tensor, noise: Tensor, levels: BoundLevels, step: float | None
) -> Tensor:
    guess = denoise(noise_latent(x0, noise, levels.most), torch.full((len(x0),), levels.most))
    return reconstruction_nats(x0, guess, levels.most, step)


def measure_ode(denoise: PredictX0, x0: Tensor, levels: BoundLevels, steps: int, step: float | None = None) -> float:
    noise = normal(*x0.shape, seed=1)
    z0 = noise_latent(x0, noise, levels.most)
    nats = ode_nats(denoise, z0, levels, steps, signs(1, *x0.shape)) - latent_nats(noise, levels.most)
    return float((nats + measure_reconstruction(denoise, x0, noise, levels, step)).mean()) * NATS_TO_BITS


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_and_the_ode_agree_with_the_entropy_of_gaussian_data(schedule: ScheduleName) -> None:
    levels, denoise = bound_levels(DiffusionConfig(schedule=schedule)), exact_denoiser(MEAN, STD)
    assert measure_bound(denoise, gaussian_data(MANY), levels, None) == pytest.approx(ENTROPY, abs=0.01)
    assert measure_ode(denoise, gaussian_data(2_000), levels, 64) == pytest.approx(ENTROPY, abs=0.01)


def test_pixel_values_have_the_entropy_of_their_intervals() -> None:
    """The discrete entropy is the continuous one plus log2(127.5), for steps of 1/127.5.

    The decoder is normal and the true one is not, which costs 0.03 bits where noise is half a step.
    """
    levels, denoise = bound_levels(DiffusionConfig(schedule="flow")), exact_denoiser(MEAN, STD)
    x0 = ((gaussian_data(MANY) + 1) / PIXEL_STEP).round() * PIXEL_STEP - 1
    wanted = ENTROPY - math.log2(PIXEL_STEP)
    bound = measure_bound(denoise, x0, levels, PIXEL_STEP)
    assert wanted < bound < wanted + 0.04
    assert measure_ode(denoise, x0[:2000], levels, 64, PIXEL_STEP) == pytest.approx(bound, abs=0.01)


def test_the_trace_is_right_for_data_that_is_correlated() -> None:
    """A rotation of independent numbers of standard deviations 0.08 to 1: off-diagonal derivatives."""
    deviation = torch.logspace(math.log10(0.08), 0, 16)
    basis = torch.linalg.qr(normal(16, 16, seed=4))[0]

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(at)
        gain = alpha.flatten(1) * deviation**2 / (alpha.flatten(1) ** 2 * deviation**2 + sigma.flatten(1) ** 2)
        return ((x.flatten(1) @ basis) * gain @ basis.T).view_as(x)

    rows = normal(4_000, 16)
    rows = (rows - rows.mean(0)) / rows.std(0, unbiased=False)
    x0 = (rows * deviation @ basis.T).view(-1, 1, 4, 4)
    levels = bound_levels(DiffusionConfig(schedule="flow"))
    wanted = float((deviation * math.sqrt(2 * math.pi * math.e)).log2().mean())
    assert measure_ode(denoise, x0, levels, 64) == pytest.approx(wanted, abs=0.01)


def test_a_worse_denoiser_has_more_bits() -> None:
    levels = bound_levels(DiffusionConfig())
    for wrong in (exact_denoiser(MEAN + 0.1, STD), exact_denoiser(MEAN, 1.3 * STD)):
        assert measure_bound(wrong, gaussian_data(MANY), levels, None) > ENTROPY + 0.05
        assert measure_ode(wrong, gaussian_data(2_000), levels, 64) > ENTROPY + 0.04


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
def test_the_elbo_loss_is_the_bounds_integral(schedule: ScheduleName, prediction: Prediction) -> None:
    """By another way than training's: the mutual information is known, log(1 + SNR std^2) / 2 at each end."""
    config = DiffusionConfig(schedule=schedule, weighting="elbo", prediction=prediction)
    levels, exact = bound_levels(config), exact_denoiser(MEAN, STD)

    def predict(z: Tensor, at: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(at)
        x = z * (alpha + sigma) if schedule == "flow" else z
        x0_hat = exact(x, at)
        eps = (x - alpha * x0_hat) / sigma
        outputs = {"eps": eps, "x0": x0_hat, "v": alpha * eps - sigma * x0_hat, "velocity": eps - x0_hat}
        return outputs[prediction]

    count = MANY
    u = (torch.arange(count) + 0.5) / count
    u = u[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    x0 = gaussian_data(count)
    loss, _ = diffusion_loss(predict, x0, u, standard_noise(len(x0), 1), config)
    wanted = (math.log1p(STD**2 * math.exp(levels.most)) - math.log1p(STD**2 * math.exp(levels.least))) / 2
    assert float(loss.mean()) == pytest.approx(wanted, abs=0.01)


def test_the_levels_are_those_of_the_schedule_within_limits() -> None:
    cosine = bound_levels(DiffusionConfig())
    t = torch.tensor([0.0, 1.0])
    assert cosine.most == pytest.approx(float(log_snr_at_time(DiffusionConfig(), t)[0])) and cosine.least == -10
    assert bound_levels(DiffusionConfig(schedule="flow")) == BoundLevels(-10, 2 * math.log(255))
    assert bound_levels(DiffusionConfig(log_snr_shift=-1)).most == pytest.approx(cosine.most - 1)


def test_the_probabilities_of_all_pixel_values_add_up_to_one() -> None:
    values = (torch.arange(256) * PIXEL_STEP - 1).view(-1, 1, 1, 1)
    for guess in (-1.4, -1.0, 0.123, 0.99, 1.7):
        for log_snr in (3.0, 8.8, 11.0):
            nats = reconstruction_nats(values, torch.full_like(values, guess), log_snr).double()
            assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-5)
    far = reconstruction_nats(values[:1], torch.ones(1, 1, 1, 1), 11.0)
    assert 1e4 < float(far) < math.inf


def test_the_prior_is_the_divergence_of_two_normal_distributions() -> None:
    x0, at = normal(3, 1, 2, 2), -1.0
    alpha, sigma = alpha_sigma(torch.full((3,), at))
    there = torch.distributions.Normal(alpha * x0, sigma.expand_as(x0))
    wanted = torch.distributions.kl_divergence(there, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(prior_nats(x0, at), wanted.mean(dim=(1, 2, 3)))


def test_the_ode_gives_the_density_of_each_latent() -> None:
    levels, z0 = BoundLevels(-10, 8), noise_latent(gaussian_data(4), normal(4, 1, 8, 8, seed=1), 8.0)
    found = ode_nats(exact_denoiser(MEAN, STD), z0, levels, 200, signs(1, *z0.shape))
    alpha, sigma = (float(part) for part in alpha_sigma(torch.tensor([levels.most])))
    density = torch.distributions.Normal(alpha * MEAN, math.hypot(alpha * STD, sigma)).log_prob(z0)
    torch.testing.assert_close(found, -density.mean(dim=(1, 2, 3)), atol=2e-3, rtol=2e-3)
