"""How far two sets of pictures lie apart in a feature space: Frechet distance, KID, precision and recall and the like.

One streaming pass over the features of a set fills a `FeatureSet`: exact sums for the Frechet distance, and a bounded
subsample for what needs pairs of pictures. Sums are of integers and the subsample goes by hashes of ids, so that a set
gives the very same result in any order, from any number of shards and workers.

Shape legend: N pictures, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# A feature is a fixed-point number of two parts: HIGH in steps of 2^-13, LOW in steps of 2^-33. Products of parts are
# below 2^40, so a float64 matrix product over BLOCK rows is exact, whatever order it is summed in.
LIMIT = 128.0  # features lie below this in size: CLIP's have length 1, Inception's stay below 30
HIGH_STEPS, LOW_STEPS = 2.0**13, 2.0**20
BLOCK = 4096
MOST_ROWS = 2**22  # beyond, the sums of products no longer fit into 64 bits
SUBSAMPLE = 5000
NEIGHBOURS = 5
CHUNK = 1024  # rows of a distance matrix at a time


class Moments:
    """Mean and covariance of features, exact: sums of integers, the same for any order and any split of the rows."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sum_2D = np.zeros((2, dim), np.int64)  # of the high and of the low parts
        self.product_3DD = np.zeros((3, dim, dim), np.int64)  # high x high, high x low, low x low

    def add(self, features_ND: np.ndarray) -> None:
        """Adds rows; ValueError where one is not finite or its size is beyond `LIMIT`."""
        if features_ND.ndim != 2 or features_ND.shape[1] != self.sum_2D.shape[1]:
            raise ValueError(f"features of shape {features_ND.shape}; give (N, {self.sum_2D.shape[1]})")
        for start in range(0, len(features_ND), BLOCK):
            part_ND = features_ND[start : start + BLOCK].astype(np.float64)
            if not np.all(np.abs(part_ND) < LIMIT):
                raise ValueError(f"features must be finite and below {LIMIT} in size; scale them down")
            high_ND = np.rint(part_ND * HIGH_STEPS)
            low_ND = np.rint((part_ND * HIGH_STEPS - high_ND) * LOW_STEPS)
            self.sum_2D += np.stack([high_ND.sum(0), low_ND.sum(0)]).astype(np.int64)
            cross_DD = high_ND.T @ low_ND
            products = (high_ND.T @ high_ND, cross_DD + cross_DD.T, low_ND.T @ low_ND)
            self.product_3DD += np.stack(products).astype(np.int64)
            self.count += len(part_ND)
        if self.count > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows do not fit exact sums; judge a subset")

    def merge(self, other: Moments) -> None:
        """Adds the rows of ``other``."""
        self.count += other.count
        self.sum_2D += other.sum_2D
        self.product_3DD += other.product_3DD

    def mean(self) -> np.ndarray:
        """float64 (D,)."""
        return np.asarray(self._total_D() / self.count, np.float64)

    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 (D, D). ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"{self.count} rows have no covariance; give two or more")
        high_DD, cross_DD, low_DD = self.product_3DD.astype(np.longdouble)
        square_DD = (high_DD + cross_DD / LOW_STEPS + low_DD / LOW_STEPS**2) / HIGH_STEPS**2
        total_D = self._total_D()
        centred_DD = square_DD - total_D[:, None] * total_D[None, :] / self.count
        return np.asarray(centred_DD / (self.count - 1), np.float64)

    def _total_D(self) -> np.ndarray:
        high_D, low_D = self.sum_2D.astype(np.longdouble)
        return np.asarray((high_D + low_D / LOW_STEPS) / HIGH_STEPS)


class Subsample:
    """The ``limit`` rows whose ids have the smallest hashes: at random, yet a function of the set of rows alone."""

    def __init__(self, limit: int = SUBSAMPLE, seed: int = 0) -> None:
        self.limit, self.seed = limit, seed
        self.rows: dict[bytes, Any] = {}
        self.bound = bytes([255]) * 17  # hashes from here on are too large to be among the smallest

    def add(self, ids: Sequence[str], rows: Iterable[Any]) -> None:
        """Adds rows of whatever kind with their ids, which are all different."""
        for name, row in zip(ids, rows, strict=True):
            place = hashlib.blake2b(f"{self.seed}|{name}".encode(), digest_size=16).digest()
            if place < self.bound:
                # A copy: a view of one row keeps the whole array in memory.
                self.rows[place] = row.copy() if isinstance(row, np.ndarray) else row
        if len(self.rows) > 2 * self.limit:
            self._cut()

    def merge(self, other: Subsample) -> None:
        """Adds the rows of ``other``."""
        self.rows |= other.rows
        self._cut()

    def taken(self) -> list[Any]:
        """At most ``limit`` rows, in the order of the hashes, which is a random one."""
        self._cut()
        return list(self.rows.values())

    def _cut(self) -> None:
        self.rows = {place: self.rows[place] for place in sorted(self.rows)[: self.limit]}
        if len(self.rows) == self.limit:
            self.bound = max(self.rows)


@dataclass
class FeatureSet:
    """What a pass over the features of a set of pictures leaves: constant memory, whatever the number of pictures."""

    dim: int
    subsample: int = SUBSAMPLE
    seed: int = 0
    moments: Moments = field(init=False)
    sample: Subsample = field(init=False)

    def __post_init__(self) -> None:
        self.moments, self.sample = Moments(self.dim), Subsample(self.subsample, self.seed)

    def add(self, ids: Sequence[str], features_ND: np.ndarray) -> None:
        """Adds pictures by their ids, which are all different, and features (N, D)."""
        self.moments.add(features_ND)
        self.sample.add(ids, features_ND)

    def merge(self, other: FeatureSet) -> None:
        """Adds the pictures of ``other``."""
        self.moments.merge(other.moments)
        self.sample.merge(other.sample)

    def __len__(self) -> int:
        return self.moments.count


# ---------------------------------------------------------------------------------------------- distances


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017, section 3)."""
    return frechet(one.mean(), one.covariance(), other.mean(), other.covariance())


def frechet(mean1_D: np.ndarray, cov1_DD: np.ndarray, mean2_D: np.ndarray, cov2_DD: np.ndarray) -> float:
    """As `frechet_distance`, of means and covariances in float64.

    tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2). Taken so, and not as roots of the product's
    eigenvalues, rounding in directions that a small set does not fill stays at rounding's size.
    """
    cross = float(np.linalg.svd(_root(cov1_DD) @ _root(cov2_DD), compute_uv=False).sum())
    apart = float(np.square(mean1_D - mean2_D).sum())
    return max(0.0, apart + float(np.trace(cov1_DD)) + float(np.trace(cov2_DD)) - 2 * cross)


def _root(cov_DD: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values_D, vectors_DD = np.linalg.eigh(cov_DD)
    values_D = np.where(values_D > len(values_D) * np.finfo(np.float64).eps * values_D.max(initial=0), values_D, 0)
    return np.asarray((vectors_DD * np.sqrt(values_D)) @ vectors_DD.T)


def kernel_distance(
    one_ND: np.ndarray, other_ND: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: mean and standard deviation, over random subsets, of the unbiased MMD^2 (Binkowski et al. 2018).

    The kernel is (x.y / D + 1)^3. ``size`` is cut to the smaller set; where it takes both sets whole, one subset says
    all and the deviation is 0.
    """
    size = min(size, len(one_ND), len(other_ND))
    if size < 2:
        raise ValueError(f"{size} pictures have no unbiased MMD; give two or more")
    if size == len(one_ND) == len(other_ND):
        return mmd2(one_ND, other_ND), 0.0
    rng = np.random.default_rng([seed, size])
    values = []
    for _ in range(subsets):
        rows, others = rng.choice(len(one_ND), size, replace=False), rng.choice(len(other_ND), size, replace=False)
        values.append(mmd2(one_ND[rows], other_ND[others]))
    return float(np.mean(values)), float(np.std(values))


def mmd2(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy under KID's kernel; it may be below 0."""
    own = _kernel(one_ND, one_ND), _kernel(other_ND, other_ND)
    within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own)
    return float(within - 2 * _kernel(one_ND, other_ND).mean())


def _kernel(one_ND: np.ndarray, other_MD: np.ndarray) -> np.ndarray:
    dots_NM: np.ndarray = one_ND.astype(np.float64) @ other_MD.astype(np.float64).T
    return (dots_NM / one_ND.shape[1] + 1) ** 3


def neighbourhoods(real_ND: np.ndarray, fake_MD: np.ndarray, nearest: int = NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A picture's neighbourhood is the ball that reaches to its ``nearest``-th neighbour in its own set. precision: share
    of fake pictures in some real one's ball; recall: the reverse; density: how many real balls hold a fake picture,
    over ``nearest``; coverage: share of real balls that hold a fake picture. ValueError for a set that is not larger
    than ``nearest``.
    """
    if min(len(real_ND), len(fake_MD)) <= nearest:
        raise ValueError(f"sets of {len(real_ND)} and {len(fake_MD)} have no {nearest} neighbours each; give more")
    real_radius_N, fake_radius_M = _radii(real_ND, nearest), _radii(fake_MD, nearest)
    balls_M, recalled, covered = np.zeros(len(fake_MD), np.int64), 0, 0
    for start in range(0, len(real_ND), CHUNK):
        apart_KM = _distances(real_ND[start : start + CHUNK], fake_MD)
        balls_M += (apart_KM <= real_radius_N[start : start + CHUNK, None]).sum(axis=0)
        recalled += int((apart_KM <= fake_radius_M).any(axis=1).sum())
        covered += int((apart_KM.min(axis=1) <= real_radius_N[start : start + CHUNK]).sum())
    return {
        "precision": float((balls_M > 0).mean()),
        "recall": recalled / len(real_ND),
        "density": float(balls_M.mean()) / nearest,
        "coverage": covered / len(real_ND),
    }


def _radii(features_ND: np.ndarray, nearest: int) -> np.ndarray:
    """Squared distance of each row to its ``nearest``-th neighbour, itself left out."""
    parts = [
        np.partition(_distances(features_ND[start : start + CHUNK], features_ND), nearest, axis=1)[:, nearest]
        for start in range(0, len(features_ND), CHUNK)
    ]
    return np.concatenate(parts)


def _distances(one_ND: np.ndarray, other_MD: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, M) in float64."""
    one, other = one_ND.astype(np.float64), other_MD.astype(np.float64)
    squares_NM = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None, :] - 2 * one @ other.T
    return np.maximum(squares_NM, 0)


def compare_sets(
    real: FeatureSet, fake: FeatureSet, kid_subsets: int = 50, seed: int = 0
) -> dict[str, float | int | None]:
    """All distances of ``fake`` from ``real``; None where a set is too small for one.

    Keys: fd, kid, kid_std, precision, recall, density, coverage, images, reference_images, subsample (rows of each set,
    at most, that KID and what follows it were measured on).
    """
    found: dict[str, float | int | None] = dict.fromkeys(
        ("fd", "kid", "kid_std", "precision", "recall", "density", "coverage")
    )
    if min(len(real), len(fake)) >= 2:
        found["fd"] = frechet_distance(real.moments, fake.moments)
        real_ND, fake_MD = np.stack(real.sample.taken()), np.stack(fake.sample.taken())
        found["kid"], found["kid_std"] = kernel_distance(fake_MD, real_ND, kid_subsets, seed=seed)
        if min(len(real_ND), len(fake_MD)) > NEIGHBOURS:
            found |= neighbourhoods(real_ND, fake_MD)
    return found | {"images": len(fake), "reference_images": len(real), "subsample": real.subsample}
