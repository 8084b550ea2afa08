"""Filters on pictures that look alike: of each set of near duplicates the first occurrence stays.

A row goes if an earlier row that stays is alike; rows that went do not count. So a chain of small changes keeps what
is far from everything kept, and a heap of copies costs one comparison each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from dataprep.filters.hamming import HashIndex
from dataprep.filters.neighbours import with_neighbours
from dataprep.spill import Spill

BLOCK = 1024  # rows compared among themselves
PIECE = 1 << 12  # thumbnails compared together
FEATURE_ROWS = 1 << 11  # rows of features compared together, all with all
WINDOW = 1 << 15  # rows that a large index is asked of together: sorted by what is looked up, the table stays in cache
NEWEST_ROWS, MIDDLE_ROWS, INDEX_ROWS = 1 << 13, 1 << 16, 1 << 20  # kept rows of an index
SPARSE = 10  # bits up to which few rows of a million have a neighbour by mere chance
MAX_GAIN = 1.2
ROUND = 5  # decimals of a cosine: the order in which a processor adds must not decide

_Positioned = tuple[HashIndex, np.ndarray]


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
        # A row without a neighbour stays, and no other goes for it: most rows are settled by that.
        near_M = with_neighbours(spill, "phash", left_M, self.distance) if self.distance <= SPARSE else left_M.copy()
        for start in range(0, len(left_M), WINDOW):
            inside_W = np.flatnonzero(near_M[start : start + WINDOW])
            if not len(inside_W):
                continue
            hash_W, position_W = spill.read("phash", start, start + WINDOW)[inside_W], inside_W + start
            stay_W = np.ones(len(inside_W), bool)
            self._ask(spill, kept.large, hash_W, position_W, stay_W)
            for begin in range(0, len(inside_W), BLOCK):
                block_B = begin + np.flatnonzero(stay_W[begin : begin + BLOCK])
                hash_B, position_B = hash_W[block_B], position_W[block_B]
                stay_B = np.ones(len(block_B), bool)
                self._ask(spill, kept.small(), hash_B, position_B, stay_B)
                self._among_themselves(hash_B, spill.take("thumbnail", position_B), stay_B)
                stay_W[block_B[~stay_B]] = False
                kept.add(hash_B[stay_B], position_B[stay_B])
            left_M[position_W[~stay_W]] = False
            kept.settle()

    def _ask(
        self,
        spill: Spill,
        indexes: list[_Positioned],
        hash_Q: np.ndarray,
        position_Q: np.ndarray,
        stay_Q: np.ndarray,
    ) -> None:
        """Clears ``stay_Q`` of the rows that are alike to one in the indexes."""
        for index, position_N in indexes:
            for query_P, row_P in index.pairs(hash_Q, stay_Q):
                for piece in range(0, len(query_P), PIECE):
                    query, row = query_P[piece : piece + PIECE], row_P[piece : piece + PIECE]
                    query, row = query[stay_Q[query]], row[stay_Q[query]]
                    if len(query):
                        left_PDC = spill.take("thumbnail", position_Q[query])
                        right_PDC = spill.take("thumbnail", position_N[row])
                        alike_P = thumbnail_distance(left_PDC, right_PDC) <= self.colour_distance
                        stay_Q[query[alike_P]] = False

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
    """The kept rows so far as indexes, each with the positions of its rows.

    What is made again at every block has to be small, and what is large has to be made seldom: the newest rows are
    poured into a middle index, that one between two windows into the large one, and a full large one is left as it is.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self.newest: list[_Positioned] = []  # none or one
        self.middle: list[_Positioned] = []  # none or one
        self.large: list[_Positioned] = []

    def small(self) -> list[_Positioned]:
        """What may hold rows that were kept in this window."""
        return [*self.middle, *self.newest]

    def add(self, hash_N: np.ndarray, position_N: np.ndarray) -> None:
        """Takes in further kept rows."""
        hash_N, position_N = _poured(self.newest, hash_N, position_N.astype(np.uint32))
        if len(hash_N) < NEWEST_ROWS:
            self.newest = [(HashIndex(hash_N, self.distance, NEWEST_ROWS), position_N)]
        else:
            hash_N, position_N = _poured(self.middle, hash_N, position_N)
            self.middle = [(HashIndex(hash_N, self.distance, MIDDLE_ROWS), position_N)]

    def settle(self) -> None:
        """Called between two windows: large indexes are asked of a window at once, so they must not change in it."""
        if self.middle and len(self.middle[0][1]) >= MIDDLE_ROWS:
            hash_N, position_N = _poured(self.middle, np.zeros(0, np.uint64), np.zeros(0, np.uint32))
            if self.large and len(self.large[-1][1]) < INDEX_ROWS:
                last = [self.large.pop()]
                hash_N, position_N = _poured(last, hash_N, position_N)
            self.large.append((HashIndex(hash_N, self.distance, INDEX_ROWS), position_N))


def _poured(source: list[_Positioned], hash_N: np.ndarray, position_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the index in ``source``, which is emptied, before the given ones."""
    if not source:
        return hash_N, position_N
    index, before_N = source.pop()
    return np.append(index.hash_N, hash_N), np.append(before_N, position_N)


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
