"""Samplers as pure functions ``sampler(denoise, x_init, log_snrs, noise) -> x_0``, and their noise levels.

``denoise(x, log_snr_B) -> x_0`` is a denoiser (see guidance.py); ``log_snrs`` (steps + 1,) rises from noise to clean;
``noise(step) -> (B, C, H, W)`` returns the standard normal noise of a step; deterministic samplers do not call it.
Each sampler evaluates the denoiser ``steps`` times, at all ``log_snrs`` but the last, and returns its last prediction.
Some take other log-SNRs for each row too, (steps + 1, B): `ddim`, `dpmpp_2m` (`PER_ROW`).
Light: importing it loads no torch, so that configs can take their choices from `SAMPLERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from train.diffusion.schedules import alpha_sigma, eps_from_x0

if TYPE_CHECKING:
    from torch import Tensor

    from train.diffusion.config import Spacing
    from train.diffusion.guidance import PredictX0

Noise: TypeAlias = "Callable[[int], Tensor]"
Sampler: TypeAlias = "Callable[[PredictX0, Tensor, Tensor, Noise], Tensor]"

# Noise-to-signal ratios of 80 and 0.002: pure noise, and noise too weak for 8 bits (Karras et al. 2022).
LEAST_LOG_SNR, MOST_LOG_SNR = -2 * math.log(80), -2 * math.log(0.002)
UNIPC_ORDER, DEIS_ORDER = 3, 4
# Sum of the sizes of DEIS's weights above which its order is lower: errors of predictions grow by it.
# Order 4 has 6.7 at equal steps.
MOST_WEIGHT = 8.0
# Weights of the newest and of earlier slopes in a step, by how many there are (Adams-Bashforth, equal steps).
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
QUADRATURE_NODES = 24  # of DEIS's integrals: more change no weight by 1e-9
KARRAS_RHO = 7.0  # concentration of steps at low noise (Karras et al. 2022, equation 5)
LEAST_LOG_VARIANCE = math.log(1e-20)  # of a posterior, as in diffusers' DDPMScheduler


@runtime_checkable
class VarianceDenoiser(Protocol):
    """A denoiser that can also give the variance that its network learned."""

    def predict_with_variance(self, x_BCHW: Tensor, log_snr_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the clean image, and the variance as `learned_std` takes it; None: the network learned none."""


def sampling_log_snrs(
    log_snr: Callable[[Tensor], Tensor], steps: int, spacing: Spacing = "time", start: float = 1.0
) -> Tensor:
    """Returns log-SNRs (steps + 1,), float32, from time ``start`` (1: pure noise) down to 0 (clean).

    ``spacing`` is uniform in ``time``, in ``log_snr``, or (``karras``) in the 7th root of noise over signal; the last
    two skip the ends of the range, where the denoiser has nothing to do. For the steps of a discrete process see
    `train.diffusion.objective.evaluation_log_snrs`. Where the schedule is clamped, equal values
    are merged, so that no step has length 0. Raises ValueError for ``steps`` < 1, ``start`` outside (0, 1], or an
    unknown spacing.
    """
    import torch

    if steps < 1:
        raise ValueError(f"steps {steps} is too few; take 1 or more")
    if not 0 < start <= 1:
        raise ValueError(f"start {start} is not in (0, 1]; take a time above 0")
    if spacing == "time":
        values = log_snr(torch.linspace(start, 0, steps + 1, dtype=torch.float64)).float()
        return torch.cat([values[:1], values[1:][values.diff() > 0]])
    first, last = log_snr(torch.tensor([start, 0.0], dtype=torch.float64)).double().clamp(LEAST_LOG_SNR, MOST_LOG_SNR)
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if spacing == "log_snr":
        return torch.lerp(first, last, share).float()
    if spacing == "karras":
        high, low = (-first / 2 / KARRAS_RHO).exp(), (-last / 2 / KARRAS_RHO).exp()
        return (-2 * KARRAS_RHO * torch.lerp(high, low, share).log()).float()
    raise ValueError(f"spacing {spacing!r} is unknown; take one of time, log_snr, karras")


def posterior_mean_std(x_BCHW: Tensor, x0_BCHW: Tensor, now: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of q(x_then | x_now, x_0) at log-SNRs (B,); ``then`` is the less noisy one.

    Ho et al. 2020, equation 7, in continuous time.
    """
    alpha, _ = alpha_sigma(now)
    alpha_then, sigma_then = alpha_sigma(then)
    kept = (now - then).exp().view(-1, 1, 1, 1)  # SNR(now) / SNR(then); 1 - ratio would lose the digits of a small one
    ratio = -(now - then).expm1().view(-1, 1, 1, 1)  # the resampled share
    return kept * alpha_then / alpha * x_BCHW + ratio * alpha_then * x0_BCHW, sigma_then * ratio.sqrt()


def learned_std(variance_BCHW: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """Returns the standard deviation (B, C, H, W) of a learned variance, for a step as in `posterior_mean_std`.

    ``variance_BCHW`` goes from -1, the posterior's variance, to 1, beta, between in logarithms (Nichol and Dhariwal
    2021, equation 15).
    """
    from torch.nn import functional

    now, then = now.double().view(-1, 1, 1, 1), then.double().view(-1, 1, 1, 1)
    largest = (-(functional.logsigmoid(now) - functional.logsigmoid(then)).expm1()).log()
    least = (functional.logsigmoid(-then) + (-(now - then).expm1()).log()).clamp(min=LEAST_LOG_VARIANCE)
    share_BCHW = (variance_BCHW + 1) / 2
    return (0.5 * (share_BCHW * largest.float() + (1 - share_BCHW) * least.float())).exp()


def ddpm(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2).

    With the posterior's variance, or the learned one that a `VarianceDenoiser` gives.
    """
    steps = len(log_snrs) - 1
    for step in range(steps):
        now, then = log_snr_of_step(log_snrs, step, x_BCHW), log_snr_of_step(log_snrs, step + 1, x_BCHW)
        if isinstance(denoise, VarianceDenoiser):
            x0_BCHW, variance_BCHW = denoise.predict_with_variance(x_BCHW, now)
        else:
            x0_BCHW, variance_BCHW = denoise(x_BCHW, now), None
        if step == steps - 1:
            return x0_BCHW
        mean, deviation = posterior_mean_std(x_BCHW, x0_BCHW, now, then)
        if variance_BCHW is not None:
            deviation = learned_std(variance_BCHW, now, then)
        x_BCHW = mean + deviation * noise(step)
    return x_BCHW


def ddim(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """The deterministic first-order sampler (Song et al. 2021, equation 12 at eta = 0)."""
    for step in range(len(log_snrs) - 1):
        now, then = log_snr_of_step(log_snrs, step, x_BCHW), log_snr_of_step(log_snrs, step + 1, x_BCHW)
        x0_BCHW = denoise(x_BCHW, now)
        if step == len(log_snrs) - 2:
            return x0_BCHW
        alpha, sigma = alpha_sigma(then)
        x_BCHW = alpha * x0_BCHW + sigma * eps_from_x0(x0_BCHW, x_BCHW, now)
    return x_BCHW


def dpmpp_2m(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """DPM-Solver++(2M), second-order multistep (Lu et al. 2022, algorithm 2), first-order at first and last."""
    before: Tensor | None = None
    for step in range(len(log_snrs) - 1):
        now, then = log_snr_of_step(log_snrs, step, x_BCHW), log_snr_of_step(log_snrs, step + 1, x_BCHW)
        x0_BCHW = denoise(x_BCHW, now)
        if step == len(log_snrs) - 2:
            return x0_BCHW
        alpha_then, sigma_then = alpha_sigma(then)
        _, sigma = alpha_sigma(now)
        half = (now - then).view(-1, 1, 1, 1) / 2  # the paper's lambda is half of log-SNR
        direction = _extrapolate_x0(log_snrs, step, x0_BCHW, before)
        x_BCHW = sigma_then / sigma * x_BCHW - alpha_then * half.expm1() * direction
        before = x0_BCHW
    return x_BCHW


def dpmpp_2m_sde(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, appendix C): ancestral steps towards an extrapolated clean image.

    Fresh noise lets later evaluations correct the errors of earlier ones, as in `ddpm`, at second order.
    """
    before: Tensor | None = None
    for step in range(len(log_snrs) - 1):
        now, then = log_snr_of_step(log_snrs, step, x_BCHW), log_snr_of_step(log_snrs, step + 1, x_BCHW)
        x0_BCHW = denoise(x_BCHW, now)
        if step == len(log_snrs) - 2:
            return x0_BCHW
        mean, deviation = posterior_mean_std(x_BCHW, _extrapolate_x0(log_snrs, step, x0_BCHW, before), now, then)
        x_BCHW = mean + deviation * noise(step)
        before = x0_BCHW
    return x_BCHW


def _extrapolate_x0(log_snrs: Tensor, step: int, x0_BCHW: Tensor, before: Tensor | None) -> Tensor:
    """Extrapolates the clean image to the middle of a step from this evaluation and the previous one."""
    if before is None:
        return x0_BCHW
    ratio = (log_snrs[step] - log_snrs[step - 1]) / (log_snrs[step + 1] - log_snrs[step])
    return x0_BCHW + (x0_BCHW - before) / (2 * (ratio.view(-1, 1, 1, 1) if ratio.ndim else float(ratio)))


def unipc(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """UniPC of order 3 with B_2(h), data prediction, multistep (Zhao et al. 2023, algorithms 1 and 2).

    Each evaluation is used twice: to correct the current point and to predict the next. The order is lower in the first
    steps, which lack history, and in the last ones, where steps in log-SNR are widest.
    """
    last, half = len(log_snrs) - 2, [float(value) / 2 for value in log_snrs]  # the paper's lambda is half of log-SNR
    known: list[tuple[float, Tensor]] = []  # (lambda, clean image), newest last
    before_BCHW, order = x_BCHW, 1
    for step in range(last + 1):
        x0_BCHW = denoise(x_BCHW, log_snr_of_step(log_snrs, step, x_BCHW))
        if step == last:
            return x0_BCHW
        if known:
            x_BCHW = _unipc_step(before_BCHW, known[-order:], half[step], x0_BCHW)
        known = [*known, (half[step], x0_BCHW)][-UNIPC_ORDER:]
        order = min(len(known), last + 1 - step)
        before_BCHW, x_BCHW = x_BCHW, _unipc_step(x_BCHW, known[-order:], half[step + 1], None)
    return x_BCHW


def _unipc_step(x_BCHW: Tensor, known: Sequence[tuple[float, Tensor]], to: float, there: Tensor | None) -> Tensor:
    """Steps from the lambda of ``known[-1]`` to ``to``: UniP, or UniC given the clean image ``there`` (eqs. 8 and 3).

    Coefficients solve R rho = b; for the degenerate second-order predictor and first-order corrector they are 1/2.
    """
    import torch

    (here, x0_BCHW), older, h = known[-1], known[:-1], to - known[-1][0]
    ratios = [(at - here) / h for at, _ in reversed(older)]
    slopes = [(image - x0_BCHW) / ratio for (_, image), ratio in zip(reversed(older), ratios, strict=True)]
    if there is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, there - x0_BCHW]
    scale = math.expm1(-h)  # B_2(h)
    phi, b = scale / -h - 1, list[float]()
    for power in range(1, len(slopes) + 1):
        b.append(phi * math.factorial(power) / scale)
        phi = phi / -h - 1 / math.factorial(power + 1)
    matrix = torch.tensor([[ratio**power for ratio in ratios] for power in range(len(b))], dtype=torch.float64)
    rho = [0.5] * len(b) if len(b) < 2 else torch.linalg.solve(matrix, torch.tensor(b, dtype=torch.float64)).tolist()
    alpha, sigma = alpha_sigma(torch.tensor([2 * to], dtype=torch.float64))
    _, sigma_here = alpha_sigma(torch.tensor([2 * here], dtype=torch.float64))
    moved = x0_BCHW + sum(weight * slope for weight, slope in zip(rho, slopes, strict=True))
    return float(sigma / sigma_here) * x_BCHW - float(alpha) * scale * moved


def deis(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """DEIS of order 4 (tAB3), multistep: the noise is a polynomial in time (Zhang and Chen 2023, equations 14 and 15).

    Time is that of the linear schedule, for which the paper found it best. The order is lower in the first steps, and
    where a step is so much longer than those before it that extrapolation would amplify errors.
    """
    return _extrapolate_noise(denoise, x_BCHW, log_snrs, DEIS_ORDER, _bounded_deis_weights)


def ipndm(denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """Improved PNDM of order 4, multistep (Liu et al. 2022; Zhang and Chen 2023, appendix H.2, for the first steps).

    Its weights are those of equal steps, whatever the steps: not of its order where they differ much, and robust.
    """
    weigh = lambda levels, then: ADAMS_BASHFORTH[len(levels) - 1]  # noqa: E731
    return _extrapolate_noise(denoise, x_BCHW, log_snrs, len(ADAMS_BASHFORTH), weigh)


def _extrapolate_noise(
    denoise: PredictX0,
    x_BCHW: Tensor,
    log_snrs: Tensor,
    order: int,
    weigh: Callable[[Sequence[float], float], Sequence[float]],
) -> Tensor:
    """Samples by d(x / alpha) / d(sigma / alpha) = eps, with a mix of the last ``order`` predictions of the noise.

    ``weigh(levels, then)`` gives their weights, which add up to 1, in a step from ``levels[0]`` to ``then``; ``levels``
    are the log-SNRs of the predictions, newest first.
    """
    levels: list[float] = []
    known: list[Tensor] = []  # newest first, as `levels`
    for step in range(len(log_snrs) - 1):
        now, then = log_snr_of_step(log_snrs, step, x_BCHW), log_snr_of_step(log_snrs, step + 1, x_BCHW)
        x0_BCHW = denoise(x_BCHW, now)
        if step == len(log_snrs) - 2:
            return x0_BCHW
        levels = [float(log_snrs[step]), *levels][:order]
        known = [eps_from_x0(x0_BCHW, x_BCHW, now), *known][:order]
        alpha, sigma = alpha_sigma(then)
        x_BCHW = alpha * x0_BCHW + sigma * known[0]
        # What the older ones change, apart: at pure noise the step is so long that rounding would be amplified.
        to = float(log_snrs[step + 1])
        length = alpha * (math.exp(-to / 2) - math.exp(-levels[0] / 2))
        for weight, older in zip(weigh(levels, to)[1:], known[1:], strict=True):
            x_BCHW = x_BCHW + length * weight * (older - known[0])
    return x_BCHW


def _bounded_deis_weights(levels: Sequence[float], then: float) -> list[float]:
    """Returns `_deis_weights` of the highest order within `MOST_WEIGHT`; those of predictions beyond it are 0."""
    weights = [1.0]
    for order in range(len(levels), 1, -1):
        found = _deis_weights(levels[:order], then)
        if sum(map(abs, found)) <= MOST_WEIGHT:
            weights = found
            break
    return weights + [0.0] * (len(levels) - len(weights))


def _deis_weights(levels: Sequence[float], then: float) -> list[float]:
    """Returns the mean of each Lagrange polynomial in time over a step in sigma / alpha (equation 15, divided by it).

    Time is sqrt(-log alpha^2), up to a factor that of the linear schedule, whose betas rise linearly.
    """
    times = [math.sqrt(math.log1p(math.exp(-level))) for level in levels]
    begin, end = times[0], math.sqrt(math.log1p(math.exp(-then)))
    weights = [0.0] * len(levels)
    for node, share in _quadrature():
        time = begin + (end - begin) * (node + 1) / 2
        slope = time * math.exp(time**2) / math.sqrt(math.expm1(time**2))  # of sigma / alpha = sqrt(exp(time^2) - 1)
        for index, own in enumerate(times):
            others = (other for place, other in enumerate(times) if place != index)
            weights[index] += share * slope * math.prod((time - other) / (own - other) for other in others)
    total = sum(weights)
    return [weight / total for weight in weights]


@cache
def _quadrature() -> list[tuple[float, float]]:
    """Returns nodes in [-1, 1] and weights of Gauss and Legendre."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    return list(zip(nodes.tolist(), weights.tolist(), strict=True))


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "deis": deis,
    "ipndm": ipndm,
}
PER_ROW: dict[str, Sampler] = {"ddim": ddim, "dpmpp_2m": dpmpp_2m}


def find_sampler(name: str) -> Sampler:
    """Returns the sampler ``name``; raises ValueError for an unknown one."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; take one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def follow(sampler: Sampler, denoise: PredictX0, x_BCHW: Tensor, log_snrs: Tensor, noise: Noise) -> Tensor:
    """Returns the point (B, C, H, W) that a sampler reaches at the last of ``log_snrs``, in as many evaluations.

    A sampler returns its last prediction; here that is made to be the point which it is asked for.
    """
    calls = count(1)

    def stop(at_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        return at_BCHW if next(calls) == len(log_snrs) else denoise(at_BCHW, log_snr_B)

    return sampler(stop, x_BCHW, _append(log_snrs), noise)


def _append(log_snrs: Tensor) -> Tensor:
    """Adds a level beyond the last, for a step that is not taken."""
    import torch

    return torch.cat([log_snrs, log_snrs[-1:] + 1])


def log_snr_of_step(log_snrs: Tensor, step: int, x_BCHW: Tensor) -> Tensor:
    """Returns ``log_snrs[step]`` for every row (B,), with the device and dtype of ``x_BCHW``."""
    if log_snrs.ndim > 1:
        return log_snrs[step].to(x_BCHW)
    # Filled on the device: a copy from the host would wait for it.
    return x_BCHW.new_full((x_BCHW.shape[0],), float(log_snrs[step]))
