"""Distances between two sets of images in a feature space: Frechet distance, KID, precision, recall, density, coverage.

Shape legend: N, M images of either set, D features, K rows of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.config import OWN_CLIP
from eval.metrics.feature_models import FeatureSpace
from eval.metrics.feature_sets import SAMPLE_SET, FeatureSet, Moments

NEIGHBOURS = 5
BLOCK_ROWS = 1024  # rows of a distance matrix at a time


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017, section 3)."""
    return gaussian_frechet_distance(one.mean(), one.covariance(), other.mean(), other.covariance())


def gaussian_frechet_distance(
    mean1_D: np.ndarray, cov1_DD: np.ndarray, mean2_D: np.ndarray, cov2_DD: np.ndarray
) -> float:
    """`frechet_distance` of means and covariances in float64.

    tr (C1 C2)^(1/2) is computed as the sum of the singular values of C1^(1/2) C2^(1/2): roots of the product's
    eigenvalues would amplify rounding in the directions that a small set does not fill.
    """
    cross = float(np.linalg.svd(_sqrt_matrix(cov1_DD) @ _sqrt_matrix(cov2_DD), compute_uv=False).sum())
    apart = float(np.square(mean1_D - mean2_D).sum())
    return max(0.0, apart + float(np.trace(cov1_DD)) + float(np.trace(cov2_DD)) - 2 * cross)


def _sqrt_matrix(cov_DD: np.ndarray) -> np.ndarray:
    """Returns the symmetric square root of a covariance."""
    values_D, vectors_DD = np.linalg.eigh(cov_DD)
    values_D = np.where(values_D > len(values_D) * np.finfo(np.float64).eps * values_D.max(initial=0), values_D, 0)
    return np.asarray((vectors_DD * np.sqrt(values_D)) @ vectors_DD.T)


def kernel_distance(
    one_ND: np.ndarray, other_ND: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: mean and standard deviation, over random subsets, of the unbiased MMD^2 (Binkowski et al. 2018).

    The kernel is (x.y / D + 1)^3. ``size`` is limited to the smaller set; if it covers both sets, there is one subset
    and the deviation is 0. Raises ValueError for a set of fewer than two images.
    """
    size = min(size, len(one_ND), len(other_ND))
    if size < 2:
        raise ValueError(f"{size} images have no unbiased MMD; give two or more")
    if size == len(one_ND) == len(other_ND):
        return unbiased_mmd2(one_ND, other_ND), 0.0
    rng = np.random.default_rng([seed, size])
    values = []
    for _ in range(subsets):
        rows, others = rng.choice(len(one_ND), size, replace=False), rng.choice(len(other_ND), size, replace=False)
        values.append(unbiased_mmd2(one_ND[rows], other_ND[others]))
    return float(np.mean(values)), float(np.std(values))


def unbiased_mmd2(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """Returns the unbiased estimate of the squared maximum mean discrepancy under KID's kernel; may be below 0."""
    own = _kid_kernel(one_ND, one_ND), _kid_kernel(other_ND, other_ND)
    within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own)
    return float(within - 2 * _kid_kernel(one_ND, other_ND).mean())


def _kid_kernel(one_ND: np.ndarray, other_MD: np.ndarray) -> np.ndarray:
    dots_NM: np.ndarray = one_ND.astype(np.float64) @ other_MD.astype(np.float64).T
    return (dots_NM / one_ND.shape[1] + 1) ** 3


def compare_neighbourhoods(real_ND: np.ndarray, fake_MD: np.ndarray, nearest: int = NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    An image's neighbourhood is the ball that reaches to its ``nearest``-th neighbour in its own set. precision: share
    of fake images within the ball of a real one; recall: the reverse; density: mean number of real balls around a fake
    image, over ``nearest``; coverage: share of real balls that contain a fake image. Raises ValueError for a set that
    is not larger than ``nearest``.
    """
    if min(len(real_ND), len(fake_MD)) <= nearest:
        raise ValueError(f"sets of {len(real_ND)} and {len(fake_MD)} have no {nearest} neighbours each; give more")
    real_radius_N, fake_radius_M = _squared_radii(real_ND, nearest), _squared_radii(fake_MD, nearest)
    balls_M, recalled, covered = np.zeros(len(fake_MD), np.int64), 0, 0
    for start in range(0, len(real_ND), BLOCK_ROWS):
        apart_KM = _squared_distances(real_ND[start : start + BLOCK_ROWS], fake_MD)
        balls_M += (apart_KM <= real_radius_N[start : start + BLOCK_ROWS, None]).sum(axis=0)
        recalled += int((apart_KM <= fake_radius_M).any(axis=1).sum())
        covered += int((apart_KM.min(axis=1) <= real_radius_N[start : start + BLOCK_ROWS]).sum())
    return {
        "precision": float((balls_M > 0).mean()),
        "recall": recalled / len(real_ND),
        "density": float(balls_M.mean()) / nearest,
        "coverage": covered / len(real_ND),
    }


def _squared_radii(features_ND: np.ndarray, nearest: int) -> np.ndarray:
    """Returns each row's squared distance to its ``nearest``-th neighbour other than itself."""
    parts = [
        np.partition(_squared_distances(features_ND[start : start + BLOCK_ROWS], features_ND), nearest, axis=1)[
            :, nearest
        ]
        for start in range(0, len(features_ND), BLOCK_ROWS)
    ]
    return np.concatenate(parts)


def _squared_distances(one_ND: np.ndarray, other_MD: np.ndarray) -> np.ndarray:
    """Returns squared Euclidean distances (N, M) in float64."""
    one, other = one_ND.astype(np.float64), other_MD.astype(np.float64)
    squares_NM = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None, :] - 2 * one @ other.T
    return np.maximum(squares_NM, 0)


def compare_sets(
    real: FeatureSet, fake: FeatureSet, kid_subsets: int = 50, seed: int = 0
) -> dict[str, float | int | None]:
    """Returns all distances of ``fake`` from ``real``; None for those that a set is too small for.

    Without ``kid_subsets`` KID is None.

    Keys: fd, kid, kid_std, precision, recall, density, coverage, images, reference_images, subsample (maximum rows of
    each set for KID and the neighbourhoods).
    """
    found: dict[str, float | int | None] = dict.fromkeys(
        ("fd", "kid", "kid_std", "precision", "recall", "density", "coverage")
    )
    if min(len(real), len(fake)) >= 2:
        found["fd"] = frechet_distance(real.moments, fake.moments)
        real_ND, fake_MD = np.stack(real.sample.taken()), np.stack(fake.sample.taken())
        if kid_subsets:
            found["kid"], found["kid_std"] = kernel_distance(fake_MD, real_ND, kid_subsets, seed=seed)
        if min(len(real_ND), len(fake_MD)) > NEIGHBOURS:
            found |= compare_neighbourhoods(real_ND, fake_MD)
    return found | {"images": len(fake), "reference_images": len(real), "subsample": real.subsample}


def describe_distances(real: FeatureSet | None, fake: FeatureSet | None, space: FeatureSpace) -> dict[str, Any]:
    """`compare_sets` with what it was computed in, and a caveat. A missing set counts as empty.

    KID is None for unit vectors: its kernel (x.y / D + 1)^3 is then all but linear, and compares means alone. CMMD
    (`eval.metrics.cmmd`) takes its place.
    """
    empty = FeatureSet(1)
    found: dict[str, Any] = {"name": space.name, "model": space.model}
    found |= {"weights": space.weights, "resolution": space.resolution}
    found |= compare_sets(real or empty, fake or empty, 0 if space.unit_length else 50)
    smaller = min(len(real or ()), len(fake or ()))
    found["dim"] = real.dim if real else None
    found["note"] = None
    if smaller < 2:
        found["note"] = "one of the sets has fewer than two images"
    elif real is not None and smaller <= real.dim:
        found["note"] = f"{smaller} images for {real.dim} dimensions: FD comes out too large; compare equal numbers"
    return found


class Distances(Metric):
    """Distances of the first candidates from the reference images, in every feature space of ``evaluate.features``."""

    title = "Distances"
    description = "First candidates against real images."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Keys: reference, distances, and per feature space its Frechet distance, and its KID unless unit vectors."""
        features = judged.features
        if features is None:
            return {"reference": None, "distances": {}}
        counted = features.sets.get((features.reference, features.size, OWN_CLIP))
        count = len(counted) if counted else 0
        values: dict[str, Any] = {
            "reference": {"what": features.reference_name, "images": count, "size": features.size},
            "distances": {},
        }
        for space in features.spaces:
            real = features.sets.get((features.reference, features.size, space.key))
            fake = features.sets.get((SAMPLE_SET, features.size, space.key))
            entry = describe_distances(real, fake, space)
            values["distances"][space.key] = entry
            values[space.name] = entry["fd"]
            if not space.unit_length:
                values[f"kid_{space.key}"] = entry["kid"]
        return values
