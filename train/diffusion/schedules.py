"""Continuous-time variance-preserving diffusion: noise schedules in log signal-to-noise ratio, and conversions.

x_t = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1 and log_snr = log(alpha^2 / sigma^2), so alpha^2 is the sigmoid
of log_snr. Time t runs from 0 (clean) to 1 (noise). B is the batch; images are (B, C, H, W), float, clean in [-1, 1].

Flow matching is the same process seen at another scale: its path z_t = (1 - t) x_0 + t eps is x_t / (alpha + sigma) at
the log-SNR of its time. So noise, samplers and inpainting work on x_t whatever the schedule, and only the network is
given z_t (`network_input`).

Light: importing it loads no torch, so that configs can take names from the registries that build on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from train.beta_schedule import BetaSchedule, find_step, log_snr_at_step, log_snr_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from train.diffusion.config import Prediction, ScheduleName

    Scales = tuple[Tensor, Tensor]

# Beyond +-20 sigma or alpha is below 5e-5, the resolution of float32 training; the exact ends are +-infinity.
LOG_SNR_LIMIT = 20.0


def cosine_log_snr(t: Tensor) -> Tensor:
    """Cosine schedule (Nichol and Dhariwal 2021) as log-SNR; t in [0, 1], any shape."""
    return -2 * ((t + 0.008) / 1.008 * (math.pi / 2)).tan().clamp(min=1e-9).abs().log()


def linear_log_snr(t: Tensor) -> Tensor:
    """1000-step linear beta schedule, 1e-4 to 0.02, in continuous time (F.3); t in [0, 1], any shape."""
    return -(1e-4 + 10 * t**2).expm1().log()


def flow_log_snr(t: Tensor) -> Tensor:
    """The linear path z_t = (1 - t) x_0 + t eps of flow matching (Lipman et al. 2023, Liu et al. 2023) as log-SNR."""
    return -2 * t.logit()


def discrete_log_snr(t: Tensor, betas: BetaSchedule) -> Tensor:
    """Log-SNR of the T steps of ``betas``; t in [0, 1], any shape: 0 is step 0, 1 is step T - 1, float64."""
    return log_snr_at_step(t * (betas.steps - 1), _table_on(betas, t.device))


@cache
def _table_on(betas: BetaSchedule, device: torch.device) -> Tensor:
    """Keeps a schedule's table on the device where it is used, so that a step copies nothing."""
    return log_snr_table(betas).to(device)


# schedule -> (time, betas of a discrete one) -> log-SNR
SCHEDULES: dict[ScheduleName, Callable[[Tensor, BetaSchedule], Tensor]] = {
    "cosine": lambda t, betas: cosine_log_snr(t),
    "linear": lambda t, betas: linear_log_snr(t),
    "flow": lambda t, betas: flow_log_snr(t),
    "discrete": discrete_log_snr,
}


def log_snr_at(
    t: Tensor,
    schedule: ScheduleName,
    shift: float = 0.0,
    betas: BetaSchedule = BetaSchedule(),  # noqa: B008 (frozen)
) -> Tensor:
    """Returns log-SNR at time t, clamped to +-`LOG_SNR_LIMIT`, float32.

    ``shift`` is added: with 2 log(64 / size) an image of another size loses its content at the same time as one of 64
    pixels (Hoogeboom et al. 2023, equation 4); for the flow schedule that is the shift of times by size / 64 (Esser et
    al. 2024, equation 23). ``betas``: of the discrete schedule. Raises ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; take one of {', '.join(SCHEDULES)}")
    # At t = 1 the tangent overflows to a negative number in float32; the clamp below gives the value for t = 1.
    exact = SCHEDULES[schedule](t.double().clamp(0.0, 1.0), betas).float()
    return (exact + shift).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)


def log_snr_slope(
    log_snr_B: Tensor,
    schedule: ScheduleName,
    shift: float = 0.0,
    betas: BetaSchedule = BetaSchedule(),  # noqa: B008
) -> Tensor:
    """Returns -d log_snr/dt (B,), positive, at values of `log_snr_at`; ignores the clamp."""
    exact_B = log_snr_B - shift
    if schedule == "discrete":
        table_T = _table_on(betas, log_snr_B.device)
        below_B = find_step(log_snr_B, table_T).floor().long().clamp(max=betas.steps - 2)
        return ((table_T[below_B] - table_T[below_B + 1]) * (betas.steps - 1)).float()
    if schedule == "cosine":  # log_snr = -2 log tan u, and sin 2u = 1 / cosh(log_snr / 2)
        return 2 * math.pi / 1.008 * (exact_B / 2).cosh()
    if schedule == "flow":  # 2 / (t (1 - t)), and t is the sigmoid of -log_snr / 2
        return 8 * (exact_B / 4).cosh().square()
    from torch.nn import functional

    beta_B = functional.softplus(-exact_B)  # integral of beta, 1e-4 + 10 t^2; log_snr = -log expm1 of it
    return 20 * ((beta_B - 1e-4).clamp(min=0) / 10).sqrt() / (-exact_B).sigmoid()


def time_at_log_snr(
    log_snr_B: Tensor,
    schedule: ScheduleName,
    shift: float = 0.0,
    betas: BetaSchedule = BetaSchedule(),  # noqa: B008
) -> Tensor:
    """Returns the times in [0, 1] (B,) of values of `log_snr_at`, its inverse where it is not clamped."""
    exact_B = log_snr_B - shift
    if schedule == "discrete":
        return find_step(log_snr_B, _table_on(betas, log_snr_B.device)) / (betas.steps - 1)
    if schedule == "cosine":
        return (exact_B / -2).exp().atan() * (2 / math.pi) * 1.008 - 0.008
    if schedule == "flow":
        return (exact_B / -2).sigmoid()
    from torch.nn import functional

    return ((functional.softplus(-exact_B) - 1e-4).clamp(min=0) / 10).sqrt()


def alpha_sigma(log_snr_B: Tensor) -> tuple[Tensor, Tensor]:
    """Returns signal and noise scales, (B, 1, 1, 1) to multiply images; float64 for float64, else float32."""
    log_snr = (log_snr_B if log_snr_B.dtype.itemsize == 8 else log_snr_B.float()).view(-1, 1, 1, 1)
    return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


# What follows takes ``scales``, the `alpha_sigma` of the same log-SNR, from a caller that has them.


def add_noise(x0_BCHW: Tensor, noise_BCHW: Tensor, log_snr_B: Tensor, scales: Scales | None = None) -> Tensor:
    """Returns x_t = alpha x_0 + sigma eps."""
    alpha, sigma = scales or alpha_sigma(log_snr_B)
    return alpha * x0_BCHW + sigma * noise_BCHW


def prediction_target(
    prediction: Prediction, x0_BCHW: Tensor, noise_BCHW: Tensor, log_snr_B: Tensor, scales: Scales | None = None
) -> Tensor:
    """Returns the target of the network.

    eps, x_0, v = alpha eps - sigma x_0 (Salimans and Ho 2022), or velocity = eps - x_0, dz/dt of flow matching.
    """
    if prediction == "eps":
        return noise_BCHW
    if prediction == "x0":
        return x0_BCHW
    if prediction == "v":
        alpha, sigma = scales or alpha_sigma(log_snr_B)
        return alpha * noise_BCHW - sigma * x0_BCHW
    if prediction == "velocity":
        return noise_BCHW - x0_BCHW
    raise ValueError(f"prediction {prediction!r} is unknown; take one of eps, x0, v, velocity")


def split_variance(output_BCHW: Tensor, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Splits the output of a network with a learned variance, which has twice the channels of its input ``x_BCHW``.

    Returns the prediction, and the variance as values in about [-1, 1] between the posterior's and beta (Nichol and
    Dhariwal 2021, equation 15), None without one.
    """
    channels = x_BCHW.shape[1]
    if output_BCHW.shape[1] == channels:
        return output_BCHW, None
    return output_BCHW[:, :channels], output_BCHW[:, channels:]


def x0_from_output(
    prediction: Prediction, output_BCHW: Tensor, x_BCHW: Tensor, log_snr_B: Tensor, scales: Scales | None = None
) -> Tensor:
    """Converts a network output into the predicted clean image."""
    alpha, sigma = scales or alpha_sigma(log_snr_B)
    if prediction == "eps":
        return (x_BCHW - sigma * output_BCHW) / alpha
    if prediction == "x0":
        return output_BCHW
    if prediction == "v":
        return alpha * x_BCHW - sigma * output_BCHW
    if prediction == "velocity":  # x_t = (alpha + sigma) x_0 + sigma velocity
        return (x_BCHW - sigma * output_BCHW) / (alpha + sigma)
    raise ValueError(f"prediction {prediction!r} is unknown; take one of eps, x0, v, velocity")


def network_input(x_BCHW: Tensor, log_snr_B: Tensor, schedule: ScheduleName, scales: Scales | None = None) -> Tensor:
    """Returns x_t as the network takes it: for the flow schedule z_t = x_t / (alpha + sigma), else itself."""
    if schedule != "flow":
        return x_BCHW
    alpha, sigma = scales or alpha_sigma(log_snr_B)
    return x_BCHW / (alpha + sigma).to(x_BCHW.dtype)


def eps_from_x0(x0_BCHW: Tensor, x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
    """Converts a clean image into the noise that makes up x_t with it."""
    alpha, sigma = alpha_sigma(log_snr_B)
    return (x_BCHW - alpha * x0_BCHW) / sigma
