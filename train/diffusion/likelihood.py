"""Likelihood of images: the variational bound in continuous time, and the density of the probability-flow ODE.

Both are of the same model: a latent z_0 = x_t at the bound's highest log-SNR, from which a normal distribution around
the predicted clean image decodes pixels. They share the decoder's term and differ in how they rate z_0. All results are
in nats per dimension, (B,); `NATS_TO_BITS` converts them. Images are (B, C, H, W), float, clean images in [-1, 1];
``denoise`` is `train.diffusion.guidance.PredictX0`. docs/diffusion.md explains the equations.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from train.diffusion.schedules import add_noise, log_snr_at

if TYPE_CHECKING:
    from torch import Tensor

    from train.diffusion.config import DiffusionConfig
    from train.diffusion.guidance import PredictX0

NATS_TO_BITS = 1 / math.log(2)
PIXEL_STEP = 2 / 255  # between two values of 8 bits
# Beyond these there is nothing to gain: noise of half a step between pixel values, and an image that is 2e-5 of x_t.
LEAST_BOUND, MOST_BOUND = -10.0, 2 * math.log(255)


class BoundLevels(NamedTuple):
    """Log-SNRs between which the bound is taken; z_0 is at ``most``."""

    least: float
    most: float


def bound_levels(config: DiffusionConfig) -> BoundLevels:
    """Returns the part of the stage's noise levels that the bound covers."""
    import torch

    least, most = log_snr_at(torch.tensor([1.0, 0.0]), config.schedule, config.log_snr_shift, config.betas).tolist()
    return BoundLevels(max(least, LEAST_BOUND), min(most, MOST_BOUND))


def prior_nats(x0_BCHW: Tensor, log_snr: float) -> Tensor:
    """Returns KL(q(x_t | x_0) || N(0, 1)) at the noisiest level (Kingma et al. 2021, equation 11)."""
    alpha2, sigma2 = _sigmoid(log_snr), _sigmoid(-log_snr)
    return (alpha2 * x0_BCHW.square().mean(dim=(1, 2, 3)) + sigma2 - 1 - math.log(sigma2)) / 2


def diffusion_nats(x0_BCHW: Tensor, x0_hat_BCHW: Tensor, log_snr_B: Tensor, spread: float | Tensor) -> Tensor:
    """Returns one sample of the bound's integral, SNR |x_0 - x_0_hat|^2 / 2 over log-SNR (ibid., equation 17).

    ``spread``: 1 / density of ``log_snr_B``, such as the length of the range for a uniform one.
    """
    error_B = (x0_BCHW - x0_hat_BCHW).square().mean(dim=(1, 2, 3))
    return log_snr_B.exp() * error_B * spread / 2


def reconstruction_nats(
    x0_BCHW: Tensor, x0_hat_BCHW: Tensor, log_snr: float, step: float | None = PIXEL_STEP
) -> Tensor:
    """Returns -log p(x_0 | z_0): a normal distribution around ``x0_hat_BCHW`` with standard deviation sigma / alpha.

    Integrated over the interval of a pixel value, where values are ``step`` apart and the outermost intervals reach to
    infinity (Ho et al. 2020, equation 13); with ``step`` None the density of continuous data.
    """
    deviation = math.exp(-log_snr / 2)
    away = (x0_BCHW.double() - x0_hat_BCHW.double()) / deviation
    if step is None:
        nats = away.square() / 2 + math.log(deviation * math.sqrt(2 * math.pi))
    else:
        half = step / 2 / deviation
        low = (away - half).masked_fill(x0_BCHW < -1 + step / 2, -math.inf)
        high = (away + half).masked_fill(x0_BCHW > 1 - step / 2, math.inf)
        nats = -_log_normal_mass(low, high)
    return nats.mean(dim=(1, 2, 3)).float()


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """Returns log(Phi(high) - Phi(low)), exact in the tails too: both are mirrored to the left one."""
    import torch

    right = low > 0
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return above + torch.log1p(-(below - above).exp())


def latent_nats(noise_BCHW: Tensor, log_snr: float) -> Tensor:
    """Returns -log q(z_0 | x_0) of z_0 made with this noise."""
    return noise_BCHW.square().mean(dim=(1, 2, 3)) / 2 + math.log(2 * math.pi * _sigmoid(-log_snr)) / 2


def ode_nats(denoise: PredictX0, z0_BCHW: Tensor, levels: BoundLevels, steps: int, probes: Tensor) -> Tensor:
    """Returns -log p(z_0) by the probability-flow ODE (Song et al. 2021, equations 13 and 39), by Heun's method.

    With s = -log_snr / 2 the ODE is dx/ds = alpha (alpha x - x_0_hat(x, s)), and log p falls along it by the divergence
    alpha^2 d - alpha tr(d x_0_hat / dx). The trace is Hutchinson's estimate with ``probes`` (n, B, C, H, W) of +-1.
    Evaluates the denoiser and its gradient 2 ``steps`` times.
    """
    import torch

    points = torch.linspace(-levels.most / 2, -levels.least / 2, steps + 1, dtype=torch.float64).tolist()
    x_BCHW, total_B = z0_BCHW, z0_BCHW.new_zeros(len(z0_BCHW))
    flow, divergence = _ode_slope(denoise, x_BCHW, points[0], probes)
    for now, then in pairwise(points):
        step = then - now
        there, divergence_there = _ode_slope(denoise, x_BCHW + step * flow, then, probes)
        x_BCHW = x_BCHW + step / 2 * (flow + there)
        total_B = total_B + step / 2 * (divergence + divergence_there)
        if then < points[-1]:
            flow, divergence = _ode_slope(denoise, x_BCHW, then, probes)
    prior_B = x_BCHW.square().mean(dim=(1, 2, 3)) / 2 + math.log(2 * math.pi) / 2
    return prior_B - total_B


def _ode_slope(denoise: PredictX0, x_BCHW: Tensor, s: float, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns dx/ds, and its divergence per dimension (B,)."""
    import torch

    alpha = _sigmoid(-2 * s) ** 0.5
    with torch.enable_grad():
        x_BCHW = x_BCHW.detach().requires_grad_()
        x0_BCHW = denoise(x_BCHW, x_BCHW.new_full((len(x_BCHW),), -2 * s))
        traces = []
        for number, probe_BCHW in enumerate(probes):
            (turned,) = torch.autograd.grad(x0_BCHW, x_BCHW, probe_BCHW, retain_graph=number + 1 < len(probes))
            traces.append((turned * probe_BCHW).mean(dim=(1, 2, 3)))
    divergence_B = alpha**2 - alpha * torch.stack(traces).mean(0)
    return alpha * (alpha * x_BCHW.detach() - x0_BCHW.detach()), divergence_B


def noise_latent(x0_BCHW: Tensor, noise_BCHW: Tensor, log_snr: float) -> Tensor:
    """Returns z_0."""
    return add_noise(x0_BCHW, noise_BCHW, x0_BCHW.new_full((len(x0_BCHW),), log_snr))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
