"""RePaint, against the forward process and a known conditional distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.gaussian import cosine, normal, step_noise
from train.diffusion.guidance import (
    PredictX0,
)
from train.diffusion.inpainting import add_forward_noise, repaint
from train.diffusion.samplers import sampling_log_snrs
from train.diffusion.schedules import (
    add_noise,
    alpha_sigma,
)


def test_a_step_to_more_noise_is_the_forward_process() -> None:
    now, then, x0 = torch.tensor([2.0]), torch.tensor([-1.0]), torch.full((20000, 1, 1, 1), 0.7)
    x = add_noise(x0, normal(20000, 1, 1, 1), now.expand(20000))
    found = add_forward_noise(x, now, then, normal(20000, 1, 1, 1, seed=1))
    alpha, sigma = alpha_sigma(then)
    assert abs(float(found.mean()) - 0.7 * float(alpha)) < 0.02
    assert abs(float(found.std()) - float(sigma)) < 0.02


def correlated(rho: float) -> PredictX0:
    """The exact denoiser of two pixels ~ N(0, [[1, rho], [rho, 1]])."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in alpha_sigma(at[:1]))
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        return (x.flatten(1) @ gain.T).view_as(x)

    return denoise


def test_repaint_samples_the_conditional_distribution() -> None:
    known, hidden = torch.tensor([1.5, -9.0]).view(1, 1, 1, 2), torch.tensor([False, True]).view(1, 1, 1, 2)
    log_snrs, means = sampling_log_snrs(cosine, 30), {}
    for resample in (1, 10):
        start = normal(3000, 1, 1, 2)
        found = repaint(correlated(0.8), start, log_snrs, step_noise(3000, 1, 1, 2), known, hidden, resample)
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
    arguments = (
        denoise,
        normal(1, 1, 1, 2),
        sampling_log_snrs(cosine, 5),
        step_noise(1, 1, 1, 2),
        torch.ones(1, 1, 1, 2),
    )
    assert repaint(*arguments, hidden, 3).flatten().tolist() == [0.0, 1.0]
    assert len(calls) == 4 * 3 + 1
    with pytest.raises(ValueError, match="resample 0 is too few"):
        repaint(*arguments, hidden, 0)
