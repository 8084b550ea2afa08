"""Learning rate and EMA decay as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

LrScheduleName = Literal["constant", "cosine"]


def learning_rate_at(step: int, peak: float, warmup: int, decay_length: int | None, final_share: float = 0.0) -> float:
    """Returns the rate at ``step`` (from 0): linear warm-up to ``peak``, then a cosine to a share of it, which stays.

    ``decay_length``: the step at which the cosine ends; None: the rate stays at ``peak``.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if decay_length is None:
        return peak
    progress = min(1.0, (step - warmup) / max(1, decay_length - warmup))
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def ema_decay_at(update: int, decay: float) -> float:
    """Returns the decay at update ``update`` (from 1): warmed up as (1 + t) / (10 + t), at most ``decay``."""
    return min(decay, (1 + update) / (10 + update))
