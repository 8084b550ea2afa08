"""The learned variance: what trains it, what it converges to, and samples that are right after few steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.helpers.gaussian import cosine, exact_denoiser, normal
from train.beta_schedule import BetaSchedule
from train.diffusion.config import DiffusionConfig
from train.diffusion.learned_variance import chain_length, chain_nats, chain_step
from train.diffusion.objective import denoising_loss, noise_images
from train.diffusion.samplers import ddpm, learned_std, posterior_mean_std, sampling_log_snrs
from train.diffusion.schedules import alpha_sigma, log_snr_at

STD, STEPS = 0.5, 5


def exact_variance(now: Tensor, then: Tensor) -> Tensor:
    """Returns Var(x_then | x_now) of data ~ N(0, STD^2), with the clean image integrated out; (B, 1, 1, 1)."""
    (alpha, sigma), (alpha_then, _) = alpha_sigma(now), alpha_sigma(then)
    zero = torch.zeros(len(now), 1, 1, 1)
    _, deviation = posterior_mean_std(zero, zero, now, then)
    left = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # Var(x_0 | x_now)
    ratio = -(now - then).expm1().view(-1, 1, 1, 1)
    return deviation**2 + (ratio * alpha_then) ** 2 * left


def test_the_variance_converges_to_that_of_the_step_and_few_steps_sample_the_right_spread() -> None:
    """Exact on Gaussian data, where the posterior's own variance gives images with too little noise in them."""
    log_snrs = sampling_log_snrs(cosine, STEPS)
    denoise, learned = exact_denoiser(0.0, STD), {}
    for step in range(STEPS - 1):
        now, then = log_snrs[step : step + 1].clamp(min=-12), log_snrs[step + 1 : step + 2]
        v = torch.zeros(1, 1, 1, 1, requires_grad=True)
        x0 = STD * normal(1, 1, 128, 128, seed=step)
        alpha, sigma = alpha_sigma(now)
        x0_hat = denoise(alpha * x0 + sigma * normal(1, 1, 128, 128, seed=50 + step), now)
        optimizer = torch.optim.LBFGS([v], max_iter=50)

        def closure(
            optimizer: Any = optimizer, v: Tensor = v, x0: Tensor = x0, x0_hat: Tensor = x0_hat,
            now: Tensor = now, then: Tensor = then,
        ) -> float:  # fmt: skip
            optimizer.zero_grad()
            loss = chain_nats(x0, x0_hat, v, now, then).mean()
            loss.backward()
            return float(loss)

        optimizer.step(closure)
        found = learned_std(v.detach(), now, then).square()
        torch.testing.assert_close(found, exact_variance(now, then), rtol=0.05, atol=1e-6)
        learned[round(float(log_snrs[step]), 3)] = v.detach()

    class Learned:
        def __call__(self, x: Tensor, at: Tensor) -> Tensor:
            return denoise(x, at)

        def predict_with_variance(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            v = learned.get(round(float(at[0]), 3), torch.zeros(1, 1, 1, 1))
            return denoise(x, at), v.expand_as(x)

    def spread(model: Any) -> float:
        """Standard deviation before the last step, relative to the exact one."""
        seen: list[Tensor] = []

        class Spy(Learned):
            def predict_with_variance(self, x: Tensor, at: Tensor) -> tuple[Tensor, Any]:
                seen.append(x)
                clean, variance = super().predict_with_variance(x, at)
                return clean, variance if model is Learned else None

        ddpm(Spy(), normal(400, 1, 8, 8), log_snrs, lambda step: normal(400, 1, 8, 8, seed=900 + step))
        alpha, sigma = alpha_sigma(log_snrs[STEPS - 1 : STEPS])
        return float(seen[-1].std()) / float((alpha**2 * STD**2 + sigma**2).sqrt())

    assert spread(Learned) == pytest.approx(1, abs=0.02)
    assert spread(None) < 0.97


def test_gradients_reach_the_variance_alone() -> None:
    x0, x0_hat = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1).requires_grad_()
    v = normal(2, 3, 4, 4, seed=2).requires_grad_()
    chain_nats(x0, x0_hat, v, torch.tensor([-2.0, 1.0]), torch.tensor([-1.9, 1.3])).sum().backward()
    assert x0_hat.grad is None and v.grad is not None and bool((v.grad != 0).all())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow", "discrete"])
def test_steps_of_the_chain(schedule: Any) -> None:
    """A step begins at a time and ends one part of the chain earlier; the last one and clamped ends do not count."""
    config = DiffusionConfig(schedule=schedule, betas=BetaSchedule(steps=100), variance_weight=1.0, variance_steps=100)
    assert chain_length(config) == 100
    t = torch.arange(100) / 99 if schedule == "discrete" else (torch.arange(100) + 0.5) / 100
    at = log_snr_at(t, config.schedule, betas=config.betas)
    step = chain_step(config, t, at)
    assert step.counts_B.tolist() == [0.0] + [1.0] * 99
    torch.testing.assert_close(step.log_snr_B[1:], at[:-1], rtol=1e-4, atol=1e-4)
    ends = torch.tensor([0.0, 1.0])
    clamped = chain_step(config, ends, torch.tensor([20.0, 25.0]))
    assert clamped.counts_B.tolist() == [0.0, 0.0] and bool((clamped.log_snr_B > torch.tensor([20.0, 25.0])).all())


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_hybrid_loss_is_finite_at_all_times(prediction: Any) -> None:
    config = DiffusionConfig(prediction=prediction, variance_weight=0.001)
    x0, t = normal(64, 3, 4, 4).clamp(-1, 1), torch.arange(64) / 64
    noised = noise_images(x0, t, normal(64, 3, 4, 4, seed=1), config)
    output = (normal(64, 6, 4, 4, seed=2) * 0.1).requires_grad_()
    loss_B, _ = denoising_loss(lambda x, at: output, noised, config)
    loss_B.sum().backward()
    assert output.grad is not None and bool(output.grad.isfinite().all()) and bool(loss_B.isfinite().all())


def test_the_bound_without_steps_and_the_chain_are_not_mixed() -> None:
    with pytest.raises(ValidationError, match=r"variance_weight=0\.001: weighting=elbo"):
        DiffusionConfig(weighting="elbo", variance_weight=0.001)
