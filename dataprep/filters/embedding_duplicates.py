"""Filter on images that look alike to CLIP, by the cosine of their features.

Comparing all pairs takes time with the square of the rows. So the rows are grouped by k-means, and a row is compared
with the rows of the nearest clusters alone: two rows are found if one belongs to a cluster that is among the nearest
``near_duplicate_probes`` of the other. Few rows, or one cluster, are compared all with all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.filters.clusters import QUANTUM, find_nearest, quantise, train_centroids
from dataprep.filters.components import EDGE, Forest, count_edge_parts, deal_both_ways
from dataprep.filters.exchange import NONE, Division, Parts, divide, spread
from dataprep.filters.left_rows import LeftRows, iterate_left
from dataprep.filters.look_alike import Described, LookAlike, keep_first
from dataprep.filters.steps import OpenTask, write_parts
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

FEATURE_ROWS = 1 << 11  # rows compared all with all at a time
ROUND = 5  # decimals of a cosine: the summation order of the CPU must not decide
MARGIN = 0.002  # of a cosine, by which quantised vectors are linked below the limit: 14 standard deviations of rounding
ALL_PAIRS = 1 << 14  # rows up to which one cluster is cheaper than many
SAMPLE = 1 << 15  # rows that the clusters are made from, and the largest number of clusters
SAMPLE_BITS = 30


class EmbeddingDuplicateKeys(Config):
    """Keys of `EmbeddingDuplicates`."""

    near_duplicate_cosine: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="drop images whose CLIP features have at least this cosine with an earlier image's (such as 0.96); "
        "null: off",
    )
    near_duplicate_probes: int = Field(
        default=4,
        ge=1,
        le=64,
        description="clusters in which duplicates of an image are looked for: more find more of them and take longer",
    )
    near_duplicate_clusters: int | None = Field(
        default=None,
        ge=1,
        le=SAMPLE,
        description="clusters that features are grouped into; 1 compares all pairs; null: from the number of rows",
    )


@dataclass(frozen=True)
class EmbeddingDuplicates(LookAlike):
    """Drops rows whose CLIP image features have a cosine of at least ``cosine`` with those of an earlier kept row."""

    keys = EmbeddingDuplicateKeys
    off: ClassVar = {"near_duplicate_cosine": None}
    remedies: ClassVar = {"clip_embedding": ("select.near_duplicate_cosine", "set score.embeddings=true")}
    catches = frozenset({"exact_duplicate", "near_duplicate"})
    columns = ("clip_embedding",)
    reason = "CLIP sees the same as in an earlier image"

    cosine: float
    probes: int = 4
    clusters: int | None = None

    @classmethod
    def from_config(cls, config: EmbeddingDuplicateKeys, available: Collection[str]) -> Self | None:
        if config.near_duplicate_cosine is None:
            return None
        return cls(config.near_duplicate_cosine, config.near_duplicate_probes, config.near_duplicate_clusters)

    def link(self, rows: LeftRows) -> Parts:
        dim, clusters = self._count_dimensions(rows), count_clusters(rows.count, self.probes, self.clusters)
        probes = min(self.probes, clusters)
        share = min(1.0, SAMPLE / rows.count)
        sample = rows.emit("sample", EmitSample, {"dim": dim, "share": share, "parts": 1}, self.columns)
        centroids = rows.exchange("centroids", TrainCentroids, {"sample": sample, "dim": dim, "count": clusters}, 1, 1)
        # As many as were found in the sample: there may be fewer rows than clusters.
        probes = min(probes, centroids.records)
        division = divide(rows.count * probes, make_vector_dtype(dim).itemsize)
        arguments = {"centroids": centroids, "dim": dim, "probes": probes, "parts": division.parts}
        vectors = rows.emit("vectors", EmitVectors, arguments, self.columns)
        edge_parts = count_edge_parts(rows.count)
        arguments = {"vectors": vectors, "division": division, "dim": dim, "cosine": self.cosine, "parts": edge_parts}
        return rows.exchange("links", LinkVectors, arguments, division.parts, edge_parts)

    def _count_dimensions(self, rows: LeftRows) -> int:
        return rows.shards[0][0].measure_column(self.columns[0]) // 2

    def describe_member(self, rows: LeftRows) -> Described:
        return (("feature", "<f2", (self._count_dimensions(rows),)),)

    def extract(self, rows: pa.Table) -> dict[str, np.ndarray]:
        return {"feature": read_features(rows)}

    def find_originals(self, members: Iterator[np.ndarray], folder: str) -> tuple[np.ndarray, np.ndarray]:
        found = list(members)
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        label_N = np.concatenate([member_N["label"] for member_N in found])
        position_N = np.concatenate([member_N["position"] for member_N in found])
        feature_ND = np.concatenate([member_N["feature"] for member_N in found])
        order_N = np.argsort(label_N, kind="stable")
        begins = np.flatnonzero(np.diff(label_N[order_N], prepend=-1))
        gone, originals = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for rows_C in np.split(order_N, begins[1:]):  # a component, whatever part it is in: the same products
            original_C = self._find_in_order(feature_ND[rows_C])
            gone_K = np.flatnonzero(original_C != NONE)
            gone.append(position_N[rows_C[gone_K]])
            originals.append(position_N[rows_C[original_C[gone_K]]])
        return np.concatenate(gone), np.concatenate(originals)

    def _find_in_order(self, feature_ND: np.ndarray) -> np.ndarray:
        """Returns for each row the first kept row that it is alike to, or `NONE` for rows to keep."""
        original_N = np.full(len(feature_ND), NONE)
        for start in range(0, len(feature_ND), FEATURE_ROWS):
            feature_BD = _normalise(feature_ND[start : start + FEATURE_ROWS])
            original_B = original_N[start : start + FEATURE_ROWS]
            for before in range(0, start, FEATURE_ROWS):
                kept_K = before + np.flatnonzero(original_N[before : before + FEATURE_ROWS] == NONE)
                asked = np.flatnonzero(original_B == NONE)
                alike_AK = self._compare(feature_BD[asked], _normalise(feature_ND[kept_K]))
                hit_A = np.flatnonzero(alike_AK.any(axis=1))
                original_B[asked[hit_A]] = kept_K[alike_AK[hit_A].argmax(axis=1)]
            within_B = np.where(original_B == NONE, NONE, 0)
            later_P, earlier_P = np.nonzero(np.tril(self._compare(feature_BD, feature_BD), -1))
            keep_first(later_P, earlier_P, within_B, lambda _, later: np.ones(len(later), bool))
            new_B = (original_B == NONE) & (within_B != NONE)
            original_B[new_B] = within_B[new_B] + start
        return original_N

    def _compare(self, left_BD: np.ndarray, right_KD: np.ndarray) -> np.ndarray:
        return np.round(left_BD @ right_KD.T, ROUND) >= round(self.cosine, ROUND)


def count_clusters(rows: int, probes: int, given: int | None) -> int:
    """Returns how many clusters to make: as given, or so that finding clusters and comparing within them cost the same.

    A row is compared with K centroids, and with about (probes - 0.5) * rows / K rows.
    """
    if given is not None:
        return min(given, rows)
    return 1 if rows <= ALL_PAIRS else min(ceil(sqrt((probes - 0.5) * rows)), SAMPLE)


def read_features(rows: pa.Table) -> np.ndarray:
    """Returns the CLIP features of rows, float16 (N, D)."""
    features = np.frombuffer(b"".join(rows["clip_embedding"].to_pylist()), "<f2")
    return features.reshape(rows.num_rows, rows.schema.field("clip_embedding").type.byte_width // 2)


def make_vector_dtype(dim: int) -> np.dtype:
    """Returns the dtype of a quantised vector in a cluster; ``home``: 1 if the cluster is its nearest."""
    return np.dtype([("cluster", np.int32), ("home", np.int32), ("position", np.int64), ("vector", np.int16, (dim,))])


class EmitSample:
    """Worker: takes ``share`` of a group's rows, chosen by their positions."""

    def __init__(self, dim: int, share: float, parts: int) -> None:
        self.dtype, self.share, self.parts = make_vector_dtype(dim), share, parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes one part of `make_vector_dtype`."""
        return write_parts(task, self._deal(task), self.dtype, self.parts)

    def _deal(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for position_N, rows in iterate_left(task, EmbeddingDuplicates.columns):
            chosen_S = np.flatnonzero(spread(position_N, 1 << SAMPLE_BITS) < self.share * (1 << SAMPLE_BITS))
            vector_S = np.zeros(len(chosen_S), self.dtype)
            vector_S["position"], vector_S["vector"] = position_N[chosen_S], quantise(read_features(rows)[chosen_S])
            yield vector_S, np.zeros(len(chosen_S), np.int64)


class TrainCentroids:
    """Worker: makes ``count`` clusters of the sample, or as many as it has rows."""

    def __init__(self, sample: Parts, dim: int, count: int) -> None:
        self.sample, self.dtype, self.count = sample, make_vector_dtype(dim), count

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the centroids as one part of `make_vector_dtype`, by cluster."""
        sample_S = self.sample.read(0, self.dtype)
        sample_S = sample_S[np.argsort(spread(sample_S["position"], 1 << 62), kind="stable")]  # in random order
        centroid_K = np.zeros(min(self.count, len(sample_S)), self.dtype)
        if self.count == 1:
            centroid_K = np.zeros(1, self.dtype)
        else:
            centroid_K["vector"] = train_centroids(sample_S["vector"], len(centroid_K))
        return write_parts(task, [(centroid_K, np.zeros(len(centroid_K), np.int64))], self.dtype, 1)


class EmitVectors:
    """Worker: deals out the vectors of a group's rows to their nearest ``probes`` clusters."""

    def __init__(self, centroids: Parts, dim: int, probes: int, parts: int) -> None:
        self.dtype, self.probes, self.parts = make_vector_dtype(dim), probes, parts
        self.centroid_KD = centroids.read(0, self.dtype)["vector"]

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `make_vector_dtype`."""
        return write_parts(task, self._deal(task), self.dtype, self.parts)

    def _deal(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for position_N, rows in iterate_left(task, EmbeddingDuplicates.columns):
            vector_ND = quantise(read_features(rows))
            nearest_NP = find_nearest(vector_ND, self.centroid_KD, self.probes)
            for place in range(self.probes):
                vector_N = np.empty(len(position_N), self.dtype)
                vector_N["cluster"], vector_N["home"] = nearest_NP[:, place], place == 0
                vector_N["position"], vector_N["vector"] = position_N, vector_ND
                yield vector_N, spread(vector_N["cluster"], self.parts)


class LinkVectors:
    """Worker: links the rows of each cluster of a part, and of rows that visit it, with a cosine near the limit."""

    def __init__(self, vectors: Parts, division: Division, dim: int, cosine: float, parts: int) -> None:
        self.vectors, self.division, self.dtype, self.parts = vectors, division, make_vector_dtype(dim), parts
        self.least = (cosine - MARGIN) * QUANTUM**2

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `components.EDGE`, as `components.find_components` needs them."""
        pieces = self.division.read(self.vectors, task.id, self.dtype, self._find_piece, task.out)
        return write_parts(task, map(self._link, pieces), EDGE, self.parts)

    def _find_piece(self, vector_N: np.ndarray) -> np.ndarray:
        return spread(vector_N["cluster"], self.division.shares) // self.division.parts

    def _link(self, vector_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the links among whole clusters, as `deal_both_ways` does."""
        vector_N = vector_N[np.lexsort((vector_N["position"], 1 - vector_N["home"], vector_N["cluster"]))]
        position_U, row_N = np.unique(vector_N["position"], return_inverse=True)
        forest = Forest(len(position_U))
        begins = np.flatnonzero(np.diff(vector_N["cluster"], prepend=-1))
        for begin, end in zip(begins, np.append(begins, len(vector_N))[1:], strict=True):
            for left_P, right_P in self._compare(vector_N[begin:end]):
                forest.join(row_N[begin + left_P], row_N[begin + right_P])
        node_K, to_K = forest.edges()
        return deal_both_ways(position_U[node_K], position_U[to_K], self.parts)

    def _compare(self, vector_C: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields pairs of rows of a cluster, those at home first, of which one is at home."""
        home = int(vector_C["home"].sum())
        for start in range(0, len(vector_C), FEATURE_ROWS):
            left_BD = vector_C["vector"][start : start + FEATURE_ROWS].astype(np.float32)
            for other in range(0, min(home, start + FEATURE_ROWS), FEATURE_ROWS):
                right_KD = vector_C["vector"][other : min(home, other + FEATURE_ROWS)].astype(np.float32)
                left_P, right_P = np.nonzero(left_BD @ right_KD.T >= self.least)
                left_P, right_P = left_P + start, right_P + other
                yield left_P[right_P < left_P], right_P[right_P < left_P]


def _normalise(feature_ND: np.ndarray) -> np.ndarray:
    feature_ND = feature_ND.astype(np.float32)
    return feature_ND / np.maximum(np.linalg.norm(feature_ND, axis=1, keepdims=True), 1e-12)
