"""Filters on pictures that look alike: of each set of near duplicates the first occurrence stays.

A row goes if an earlier row that stays is alike; rows that went do not count. So a chain of small changes keeps what
is far from everything kept, and a heap of copies costs one comparison each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from dataprep.filters.hamming import HashIndex
from dataprep.spill import Spill

BLOCK = 1024  # rows compared among themselves
PIECE = 1 << 12  # thumbnails compared together
FEATURE_ROWS = 1 << 11  # rows of features compared together, all with all
TIERS = (1 << 13, 1 << 16, 1 << 20)  # kept rows of an index
MAX_GAIN = 1.2
ROUND = 5  # decimals of a cosine: the order in which a processor adds must not decide


class NearDuplicates:
    """Drops rows that look like an earlier kept one.

    Alike are two pictures whose perceptual hashes differ in at most ``distance`` bits (the same grey structure) and
    whose thumbnails are within ``colour_distance`` (the same colours in the same places, which the hash of a grey
    picture cannot tell); see `thumbnail_distance`.
    """

    name = "near_duplicate"
    columns = ("phash", "thumbnail")
    reason = "looks like an earlier image"

    def __init__(self, distance: int, colour_distance: float) -> None:
        self.distance, self.colour_distance = distance, colour_distance

    def keys(self, rows: pa.Table) -> dict[str, np.ndarray]:
        thumbnail_N = np.frombuffer(b"".join(rows["thumbnail"].to_pylist()), np.uint8)
        thumbnail_NDC = thumbnail_N.reshape(rows.num_rows, rows.schema.field("thumbnail").type.byte_width // 3, 3)
        return {"phash": rows["phash"].to_numpy().astype(np.uint64), "thumbnail": thumbnail_NDC}

    def drop(self, spill: Spill, left_M: np.ndarray) -> None:
        kept = _Kept(self.distance)
        for start in range(0, len(left_M), BLOCK):
            inside_B = np.flatnonzero(left_M[start : start + BLOCK])
            if not len(inside_B):
                continue
            hash_B = spill.read("phash", start, start + BLOCK)[inside_B]
            thumbnail_BDC = spill.read("thumbnail", start, start + BLOCK)[inside_B]
            stay_B = np.ones(len(inside_B), bool)
            for index, position_N in kept.indexes():
                for query_P, row_P in index.pairs(hash_B, stay_B):
                    self._compare(spill, thumbnail_BDC, stay_B, query_P, position_N[row_P])
            self._among_themselves(hash_B, thumbnail_BDC, stay_B)
            left_M[inside_B[~stay_B] + start] = False
            kept.add(hash_B[stay_B], inside_B[stay_B] + start)

    def _compare(
        self, spill: Spill, thumbnail_BDC: np.ndarray, stay_B: np.ndarray, query_P: np.ndarray, earlier_P: np.ndarray
    ) -> None:
        """Clears ``stay_B`` of the queries whose thumbnail is like that of the earlier row beside them."""
        for piece in range(0, len(query_P), PIECE):
            still = stay_B[query_P[piece : piece + PIECE]]
            query, earlier = query_P[piece : piece + PIECE][still], earlier_P[piece : piece + PIECE][still]
            if len(query):
                distance_P = thumbnail_distance(thumbnail_BDC[query], spill.take("thumbnail", earlier))
                stay_B[query[distance_P <= self.colour_distance]] = False

    def _among_themselves(self, hash_B: np.ndarray, thumbnail_BDC: np.ndarray, stay_B: np.ndarray) -> None:
        """Clears ``stay_B`` of rows that are alike to an earlier one of the block that stays."""
        index, open_B = HashIndex(hash_B, self.distance, BLOCK), stay_B.copy()
        found = [(q[q > n], n[q > n]) for q, n in index.pairs(hash_B, open_B)]
        later_P = np.concatenate([later for later, _ in found]) if found else np.zeros(0, np.int64)
        earlier_P = np.concatenate([earlier for _, earlier in found]) if found else np.zeros(0, np.int64)

        def alike(earlier: int, later: np.ndarray) -> np.ndarray:
            right_PDC = np.broadcast_to(thumbnail_BDC[earlier], (len(later), *thumbnail_BDC.shape[1:]))
            return thumbnail_distance(thumbnail_BDC[later], right_PDC) <= self.colour_distance

        _first_stays(later_P, earlier_P, stay_B, alike)


class _Kept:
    """The kept rows so far as indexes of several sizes: what is made again at every block has to be small, and what is
    large has to be made seldom. A full index is poured into the next larger one; a full one of the largest is left."""

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self.tiers: list[tuple[HashIndex, np.ndarray] | None] = [None] * len(TIERS)
        self.full: list[tuple[HashIndex, np.ndarray]] = []

    def add(self, hash_N: np.ndarray, position_N: np.ndarray) -> None:
        """Takes in further kept rows."""
        for tier, rows in enumerate(TIERS):
            if (before := self.tiers[tier]) is not None:
                hash_N, position_N = np.append(before[0].hash_N, hash_N), np.append(before[1], position_N)
            self.tiers[tier] = None
            if len(hash_N) < rows:
                self.tiers[tier] = (HashIndex(hash_N, self.distance, rows), position_N)
                return
        self.full.append((HashIndex(hash_N, self.distance, TIERS[-1]), position_N))

    def indexes(self) -> list[tuple[HashIndex, np.ndarray]]:
        """(index, position of each of its rows) over everything kept so far."""
        return [*self.full, *(tier for tier in self.tiers if tier is not None)]


class EmbeddingDuplicates:
    """Drops rows whose CLIP image features have a cosine of at least ``cosine`` with those of an earlier kept row.

    Exact, by comparing all with all kept in blocks: time grows with the square of the rows, memory does not.
    """

    name = "embedding_duplicate"
    columns = ("clip_embedding",)
    reason = "CLIP sees the same as in an earlier image"

    def __init__(self, cosine: float) -> None:
        self.cosine = cosine

    def keys(self, rows: pa.Table) -> dict[str, np.ndarray]:
        features = np.frombuffer(b"".join(rows["clip_embedding"].to_pylist()), "<f2")
        dim = rows.schema.field("clip_embedding").type.byte_width // 2
        return {"clip_embedding": features.reshape(rows.num_rows, dim)}

    def drop(self, spill: Spill, left_M: np.ndarray) -> None:
        for start in range(0, len(left_M), FEATURE_ROWS):
            inside_B = np.flatnonzero(left_M[start : start + FEATURE_ROWS])
            if not len(inside_B):
                continue
            feature_BD = _unit(spill.read("clip_embedding", start, start + FEATURE_ROWS)[inside_B])
            stay_B = np.ones(len(inside_B), bool)
            for _, before_KD in spill.blocks("clip_embedding", left_M[:start], FEATURE_ROWS):
                asked = np.flatnonzero(stay_B)
                stay_B[asked[self._alike(feature_BD[asked], _unit(before_KD)).any(axis=1)]] = False
            later_P, earlier_P = np.nonzero(np.tril(self._alike(feature_BD, feature_BD), -1))
            _first_stays(later_P, earlier_P, stay_B, lambda _, later: np.ones(len(later), bool))
            left_M[inside_B[~stay_B] + start] = False

    def _alike(self, left_BD: np.ndarray, right_KD: np.ndarray) -> np.ndarray:
        return np.round(left_BD @ right_KD.T, ROUND) >= round(self.cosine, ROUND)


def _unit(feature_BD: np.ndarray) -> np.ndarray:
    feature_BD = feature_BD.astype(np.float32)
    return feature_BD / np.maximum(np.linalg.norm(feature_BD, axis=1, keepdims=True), 1e-12)


def _first_stays(
    later_P: np.ndarray,
    earlier_P: np.ndarray,
    stay_B: np.ndarray,
    alike: Callable[[int, np.ndarray], np.ndarray],
) -> None:
    """Clears ``stay_B`` of every later row of a pair whose earlier row stays and that is ``alike`` to it, in order."""
    order_P = np.argsort(earlier_P, kind="stable")
    later_P, earlier_P = later_P[order_P], earlier_P[order_P]
    rows, begins = np.unique(earlier_P, return_index=True)
    for row, begin, end in zip(rows.tolist(), begins, np.append(begins, len(later_P))[1:], strict=True):
        if stay_B[row]:
            later = np.unique(later_P[begin:end])
            later = later[stay_B[later]]
            if len(later):
                stay_B[later[alike(row, later)]] = False


def thumbnail_distance(left_PDC: np.ndarray, right_PDC: np.ndarray) -> np.ndarray:
    """How different uint8 thumbnails (P pairs, D cells, 3 channels) are: grey levels (P,) in their worst cell.

    A common factor within `MAX_GAIN` (the same picture lit otherwise) is taken out by least squares first; the worst
    cell, not the mean, because a small object that differs moves the mean as little as a new encoding does.
    """
    left_PDC, right_PDC = left_PDC.astype(np.float32), right_PDC.astype(np.float32)
    energy_P = np.maximum((right_PDC**2).sum(axis=(1, 2)), 1e-6)
    gain_P = np.clip((left_PDC * right_PDC).sum(axis=(1, 2)) / energy_P, 1 / MAX_GAIN, MAX_GAIN)
    delta_PDC = left_PDC - gain_P[:, None, None] * right_PDC
    return np.sqrt((delta_PDC**2).mean(axis=2)).max(axis=1, initial=0.0)
