"""CMMD: maximum mean discrepancy of CLIP features under a Gaussian kernel (Jayasumana et al. 2024, arXiv 2401.09603).

Shape legend: N, M images of either set, D features, K rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.feature_models import FeatureSpace
from eval.metrics.feature_sets import SAMPLE_SET, FeatureSet

SIGMA, SCALE = 10.0, 1000.0  # of the paper: bandwidth of the kernel, factor of the published figures
BLOCK_ROWS = 1024  # rows of the kernel matrix at a time


def gaussian_mmd2(one_ND: np.ndarray, other_MD: np.ndarray, sigma: float = SIGMA) -> float:
    """Returns the squared MMD under exp(-|x - y|^2 / (2 sigma^2)), in float64.

    The minimum-variance estimate (Gretton et al. 2012, equation 5), as in the code of the CMMD paper: means over all
    pairs, an image with itself too. Never below 0. Raises ValueError for an empty set.
    """
    if not len(one_ND) or not len(other_MD):
        raise ValueError(f"sets of {len(one_ND)} and {len(other_MD)} images have no MMD; give one or more each")
    return (
        _mean_loss(one_ND, other_MD, sigma) * 2
        - _mean_loss(one_ND, one_ND, sigma)
        - _mean_loss(other_MD, other_MD, sigma)
    )


def _mean_loss(one_ND: np.ndarray, other_MD: np.ndarray, sigma: float) -> float:
    """Returns the mean of 1 - kernel.

    The kernel of unit vectors is within 2% of 1 at sigma 10: `expm1` of differences keeps the digits that kernels of
    their own would lose.
    """
    total = sum(float(-np.expm1(-part_KM / (2 * sigma**2)).sum()) for part_KM in _squared_distances(one_ND, other_MD))
    return total / (len(one_ND) * len(other_MD))


def _squared_distances(one_ND: np.ndarray, other_MD: np.ndarray) -> Iterator[np.ndarray]:
    """Yields rows of squared Euclidean distances (K, M) in float64."""
    one, other = one_ND.astype(np.float64), other_MD.astype(np.float64)
    squares_M = np.square(other).sum(1)
    for start in range(0, len(one), BLOCK_ROWS):
        part = one[start : start + BLOCK_ROWS]
        yield np.maximum(np.square(part).sum(1)[:, None] + squares_M[None, :] - 2 * part @ other.T, 0)


def measure_cmmd(real: FeatureSet | None, fake: FeatureSet | None, space: FeatureSpace) -> float | None:
    """Returns 1,000 times the squared MMD of the sets' subsamples; None for features that are not of unit length."""
    if not space.unit_length or not real or not fake:
        return None
    return SCALE * max(0.0, gaussian_mmd2(np.stack(real.sample.taken()), np.stack(fake.sample.taken())))


class Cmmd(Metric):
    """CMMD of the first candidates from the reference images, in every feature space of unit vectors."""

    title = "CMMD"
    description = "Squared MMD of CLIP features under a Gaussian kernel, times 1,000."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Keys: ``cmmd_<key>`` per feature space."""
        features = judged.features
        if features is None:
            return {}
        found = {}
        for space in features.spaces:
            real = features.sets.get((features.reference, features.size, space.key))
            fake = features.sets.get((SAMPLE_SET, features.size, space.key))
            if space.unit_length:
                found[space.cmmd_name] = measure_cmmd(real, fake, space)
        return found
