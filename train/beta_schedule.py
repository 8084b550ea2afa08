"""Discrete diffusion processes: the variance (beta) of each step as a table of log-SNRs, and steps between its entries.

Step t of T has log-SNR log(abar_t / (1 - abar_t)), with abar_t the product of 1 - beta over steps 0 to t; between two
steps log-SNR is interpolated linearly in t. Shared by `train.diffusion` (noise of a step) and `train.models` (step of a
noise level). Light: importing it loads no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config

if TYPE_CHECKING:
    from torch import Tensor

BetaKind = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
OwnSpacing = Literal["leading", "linspace"]
MAX_BETA = 0.999  # cap of squaredcos_cap_v2 (Nichol and Dhariwal 2021, section 3.2)
# A step that is nearer to a whole one than float32 log-SNRs can tell is that one: networks have learned whole steps.
WHOLE_STEP = 1e-3


class BetaSchedule(Config):
    """Betas of a discrete process, by the names of diffusers' schedulers. The defaults are DeepFloyd IF's."""

    kind: BetaKind = Field(default="squaredcos_cap_v2", description="formula of the betas")
    steps: int = Field(default=1000, ge=2, description="number of steps")
    start: float = Field(default=1e-4, gt=0, lt=1, description="beta of the first step; not of squaredcos_cap_v2")
    end: float = Field(default=0.02, gt=0, lt=1, description="beta of the last step; not of squaredcos_cap_v2")
    values: tuple[float, ...] | None = Field(
        default=None, strict=False, description="the betas themselves, in place of a formula"
    )

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.values is None:
            return self
        if len(self.values) != self.steps:
            raise ValueError(f"values has {len(self.values)} betas, steps is {self.steps}; make them equal")
        if wrong := [beta for beta in self.values if not 0 < beta < 1]:
            raise ValueError(f"values: beta {wrong[0]} is not between 0 and 1; leave it out or change it")
        return self


def log_snr_table(schedule: BetaSchedule) -> Tensor:
    """Returns the log-SNR of every step, float64 (T,), falling.

    Betas and their products are float32, as in diffusers, so that both compute with the same numbers.
    """
    import torch

    product_T = torch.cumprod(1 - _betas(schedule), dim=0).double()
    return product_T.log() - (-product_T).log1p()


def _betas(schedule: BetaSchedule) -> Tensor:
    import torch

    start, end, steps = schedule.start, schedule.end, schedule.steps
    if schedule.values is not None:
        return torch.tensor(schedule.values, dtype=torch.float32)
    if schedule.kind == "squaredcos_cap_v2":
        product = [math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(steps + 1)]
        betas = [min(1 - product[step + 1] / product[step], MAX_BETA) for step in range(steps)]
        return torch.tensor(betas, dtype=torch.float32)
    if schedule.kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2


def log_snr_at_step(step: Tensor, table_T: Tensor) -> Tensor:
    """Returns the log-SNR, float64, at steps in [0, T - 1], whole or between, any shape."""
    step = step.double().clamp(0, len(table_T) - 1)
    below = step.floor().long().clamp(max=len(table_T) - 2)
    return table_T[below].lerp(table_T[below + 1], step - below)


def find_step(log_snr: Tensor, table_T: Tensor) -> Tensor:
    """Returns the step in [0, T - 1] with this log-SNR, float32, whole or between, any shape.

    Inverts `log_snr_at_step`; log-SNRs beyond the table get its first or last step.
    """
    import torch

    log_snr = log_snr.double()
    above = torch.searchsorted(-table_T, -log_snr).clamp(1, len(table_T) - 1)
    high, low = table_T[above - 1], table_T[above]
    step = (above - 1 + (high - log_snr) / (high - low)).clamp(0, len(table_T) - 1)
    return torch.where((step - step.round()).abs() < WHOLE_STEP, step.round(), step).float()


def own_steps(steps: int, count: int, spacing: OwnSpacing) -> list[int]:
    """Returns ``count`` of the process's ``steps`` steps, falling to 0, spaced as diffusers' schedulers name it.

    ``leading``: multiples of steps // count; ``linspace``: from the last step to the first, rounded. Raises ValueError
    for a count outside 1 to ``steps``.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"steps {count} is not in 1 to {steps}, the number of steps of the noise schedule")
    if spacing == "leading":
        return [number * (steps // count) for number in reversed(range(count))]
    import numpy as np

    return [int(step) for step in np.linspace(0, steps - 1, count).round()[::-1]]
