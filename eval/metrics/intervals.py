"""95% intervals: bootstrap of a mean and of paired differences, Wilson of a share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

RESAMPLES, LEVEL = 2000, 0.95


def bootstrap_mean(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float]:
    """Returns the mean with its percentile-bootstrap interval (Efron 1979): value, low, high. Needs one value."""
    array_N = np.asarray(values, np.float64)
    rng = np.random.default_rng([seed, len(array_N)])
    means = [array_N[rng.integers(len(array_N), size=len(array_N))].mean() for _ in range(resamples)]
    return {"value": float(array_N.mean())} | _interval(means)


def bootstrap_pairs(
    count: int, difference: Callable[[np.ndarray], float], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Returns a difference between two runs on the same ``count`` prompts, with its interval: value, low, high.

    ``difference`` maps row numbers, int64 (count,), to the difference on these rows. Both runs are resampled at the
    same prompts, which removes the variance of the prompts' difficulty.
    """
    rng = np.random.default_rng([seed, count])
    values = [difference(rng.integers(count, size=count)) for _ in range(resamples)]
    return {"value": difference(np.arange(count))} | _interval(values)


def _interval(values: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def wilson_interval(successes: int, count: int) -> dict[str, float]:
    """Returns the 95% Wilson interval of the share ``successes`` / ``count`` (Wilson 1927): low, high.

    Not by scipy.stats: its import takes longer than all the metrics of a small run.
    """
    share, z = successes / count, NormalDist().inv_cdf((1 + LEVEL) / 2)
    scale = 2 * (count + z**2)
    center = (2 * count * share + z**2) / scale
    half = z / scale * sqrt(4 * count * share * (1 - share) + z**2)
    low, high = center - half, center + half
    return {"low": low if successes else 0.0, "high": high if successes < count else 1.0}
