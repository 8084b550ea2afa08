"""Features of a set of images in bounded memory: exact moments, and a bounded subsample.

Sums are of integers and the subsample is chosen by hashes of ids, so a set gives the same result to the last bit for
any order of its images, and for any number of shards and workers.

Shape legend: N images, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.metrics.config import SUBSAMPLE

# A feature is a fixed-point number of two parts: HIGH in steps of 2^-13, LOW in steps of 2^-33. Products of parts are
# below 2^40, so a float64 matrix product over BLOCK_ROWS rows is exact, in whatever order it is summed.
LIMIT = 128.0  # bound of a feature's absolute value: CLIP's have length 1, Inception's stay below 30
HIGH_STEPS, LOW_STEPS = 2.0**13, 2.0**20
BLOCK_ROWS = 4096
MAX_ROWS = 2**22  # beyond, the sums of products overflow 64 bits
SAMPLE_SET, VALIDATION_SET, REFERENCE_SET, SWEEP_SET = "sample", "validation", "reference", "sweep"
FeatureKey = tuple[str, int, str]  # set, size of its images in pixels, key of the feature space


class Moments:
    """Exact mean and covariance of features."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sum_2D = np.zeros((2, dim), np.int64)  # of the high and the low parts
        self.product_3DD = np.zeros((3, dim, dim), np.int64)  # high x high, high x low, low x low

    def add(self, features_ND: np.ndarray) -> None:
        """Adds rows; raises ValueError for one that is not finite or not below `LIMIT` in absolute value."""
        if features_ND.ndim != 2 or features_ND.shape[1] != self.sum_2D.shape[1]:
            raise ValueError(f"features of shape {features_ND.shape}; give (N, {self.sum_2D.shape[1]})")
        for start in range(0, len(features_ND), BLOCK_ROWS):
            part_ND = features_ND[start : start + BLOCK_ROWS].astype(np.float64)
            if not np.all(np.abs(part_ND) < LIMIT):
                raise ValueError(f"features must be finite and below {LIMIT} in size; scale them down")
            high_ND = np.rint(part_ND * HIGH_STEPS)
            low_ND = np.rint((part_ND * HIGH_STEPS - high_ND) * LOW_STEPS)
            self.sum_2D += np.stack([high_ND.sum(0), low_ND.sum(0)]).astype(np.int64)
            cross_DD = high_ND.T @ low_ND
            products = (high_ND.T @ high_ND, cross_DD + cross_DD.T, low_ND.T @ low_ND)
            self.product_3DD += np.stack(products).astype(np.int64)
            self.count += len(part_ND)
        if self.count > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS} rows do not fit exact sums; measure a subset")

    def merge(self, other: Moments) -> None:
        """Adds the rows of ``other``."""
        self.count += other.count
        self.sum_2D += other.sum_2D
        self.product_3DD += other.product_3DD

    def mean(self) -> np.ndarray:
        """Returns float64 (D,)."""
        return np.asarray(self._total_D() / self.count, np.float64)

    def covariance(self) -> np.ndarray:
        """Returns the unbiased covariance, float64 (D, D). Raises ValueError for fewer than two rows."""
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
    """The ``limit`` rows with the smallest hashes of their ids: random, yet a function of the set of rows alone."""

    def __init__(self, limit: int = SUBSAMPLE, seed: int = 0) -> None:
        self.limit, self.seed = limit, seed
        self.rows: dict[bytes, Any] = {}
        self.bound = bytes([255]) * 17  # hashes from here on cannot be among the smallest

    def add(self, ids: Sequence[str], rows: Iterable[Any]) -> None:
        """Adds rows of any kind; ids are distinct."""
        for name, row in zip(ids, rows, strict=True):
            place = hashlib.blake2b(f"{self.seed}|{name}".encode(), digest_size=16).digest()
            if place < self.bound:
                # Copied: a view of one row would keep the whole array in memory.
                self.rows[place] = row.copy() if isinstance(row, np.ndarray) else row
        if len(self.rows) > 2 * self.limit:
            self._cut()

    def merge(self, other: Subsample) -> None:
        """Adds the rows of ``other``."""
        self.rows |= other.rows
        self._cut()

    def taken(self) -> list[Any]:
        """Returns at most ``limit`` rows in the order of their hashes, which is random."""
        self._cut()
        return list(self.rows.values())

    def _cut(self) -> None:
        self.rows = {place: self.rows[place] for place in sorted(self.rows)[: self.limit]}
        if len(self.rows) == self.limit:
            self.bound = max(self.rows)


@dataclass
class FeatureSet:
    """Accumulates the features of a set of images; memory does not grow with the number of images."""

    dim: int
    subsample: int = SUBSAMPLE
    seed: int = 0
    moments: Moments = field(init=False)
    sample: Subsample = field(init=False)

    def __post_init__(self) -> None:
        self.moments, self.sample = Moments(self.dim), Subsample(self.subsample, self.seed)

    def add(self, ids: Sequence[str], features_ND: np.ndarray) -> None:
        """Adds features (N, D) of images; ids are distinct."""
        self.moments.add(features_ND)
        self.sample.add(ids, features_ND)

    def merge(self, other: FeatureSet) -> None:
        """Adds the images of ``other``."""
        self.moments.merge(other.moments)
        self.sample.merge(other.sample)

    def __len__(self) -> int:
        return self.moments.count
