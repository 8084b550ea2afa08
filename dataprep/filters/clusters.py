"""K-means clusters of unit vectors, the same to the last bit on any machine, for any number of threads and tasks.

Vectors are rounded to multiples of 1 / `QUANTUM`. Products of such vectors, and all their partial sums, are whole
numbers below 2^24 (Cauchy-Schwarz), which float32 holds exactly: no order of summation gives another result.

Legend: N vectors, K clusters, D dimensions. Vectors are whole numbers.
"""

from __future__ import annotations

import numpy as np

QUANTUM = 4000  # (QUANTUM + sqrt(D) / 2)^2 < 2^24 up to 36,000 dimensions
PRODUCTS = 1 << 23  # in memory at a time
ROUNDS = 8  # of Lloyd's algorithm


def quantise(feature_ND: np.ndarray) -> np.ndarray:
    """Returns the directions of vectors as int16 (N, D), of length `QUANTUM`; a zero vector stays zero."""
    wide_ND = feature_ND.astype(np.float64)
    length_N = np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND))
    return np.rint(wide_ND * (QUANTUM / np.maximum(length_N, 1e-12))[:, None]).astype(np.int16)


def train_centroids(sample_ND: np.ndarray, count: int) -> np.ndarray:
    """Returns ``count`` centroids (K, D), int16, of a sample in random order, by spherical k-means.

    Starts from the first vectors. A cluster without a vector keeps its centroid.
    """
    sample_ND = sample_ND.astype(np.float32)
    centroid_KD = sample_ND[:count].astype(np.int16)
    for _ in range(ROUNDS):
        nearest_N = find_nearest(sample_ND, centroid_KD, 1)[:, 0]
        order_N = np.argsort(nearest_N, kind="stable")
        filled, first = np.unique(nearest_N[order_N], return_index=True)
        sum_KD = np.add.reduceat(sample_ND[order_N].astype(np.float64), first)  # whole numbers below 2^53
        centroid_KD[filled] = quantise(sum_KD)
    return centroid_KD


def find_nearest(vector_ND: np.ndarray, centroid_KD: np.ndarray, count: int) -> np.ndarray:
    """Returns the ``count`` nearest clusters of each vector (N, count), nearest first; of equal ones the first."""
    centroid_DK = np.ascontiguousarray(centroid_KD.T.astype(np.float32))
    nearest_N = np.empty((len(vector_ND), count), np.int32)
    step = max(1, PRODUCTS // len(centroid_KD))
    for start in range(0, len(vector_ND), step):
        product_BK = vector_ND[start : start + step].astype(np.float32) @ centroid_DK
        rows_B = np.arange(len(product_BK))
        for place in range(count):
            nearest_N[start : start + step, place] = best_B = product_BK.argmax(axis=1)
            product_BK[rows_B, best_B] = -np.inf
    return nearest_N
