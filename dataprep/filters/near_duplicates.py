"""Filters on images that look alike: the first occurrence of each set of near duplicates is kept.

A row is dropped if an earlier kept row is alike; dropped rows do not count. A chain of small changes therefore keeps
every row that is far from all kept rows, and each of many copies costs one comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.filters.base import SetFilter
from dataprep.filters.column_store import ColumnStore
from dataprep.filters.hash_neighbours import find_rows_with_neighbours
from dataprep.filters.multi_index_hash import HashIndex
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1024  # rows compared among themselves
PIECE = 1 << 12  # thumbnails compared together
FEATURE_ROWS = 1 << 11  # rows of features compared all with all at a time
WINDOW = 1 << 15  # rows looked up in a large index together: sorted lookups keep its table in the CPU cache
SMALL_ROWS, MEDIUM_ROWS, LARGE_ROWS = 1 << 13, 1 << 16, 1 << 20  # kept rows per index
SPARSE = 10  # bits up to which few of a million rows have a neighbour by chance
MAX_GAIN = 1.2
ROUND = 5  # decimals of a cosine: the summation order of the CPU must not decide

_PositionedIndex = tuple[HashIndex, np.ndarray]


class NearDuplicateKeys(Config):
    """Keys of `NearDuplicates`."""

    near_duplicate_bits: int | None = Field(
        default=6,
        ge=0,
        le=16,
        description="drop images whose perceptual hash differs from an earlier one's in at most N bits; null: off",
    )
    near_duplicate_colour: float = Field(
        default=4.0, ge=0, description="and whose 8x8 thumbnail differs by at most N grey levels in its worst cell"
    )


class NearDuplicates(SetFilter):
    """Drops rows that look like an earlier kept row.

    Two images are alike if their perceptual hashes differ in at most ``distance`` bits (same grey structure) and their
    thumbnails by at most ``colour_distance`` (same colours in the same places, which the hash of the grey image does
    not see); see `measure_thumbnail_distance`.
    """

    keys = NearDuplicateKeys
    off: ClassVar = {"near_duplicate_bits": None}
    catches = frozenset({"exact_duplicate", "near_duplicate"})
    columns = ("phash", "thumbnail")
    reason = "looks like an earlier image"

    def __init__(self, distance: int, colour_distance: float) -> None:
        self.distance, self.colour_distance = distance, colour_distance

    @classmethod
    def from_config(cls, config: NearDuplicateKeys, available: Collection[str]) -> Self | None:
        if config.near_duplicate_bits is None:
            return None
        return cls(config.near_duplicate_bits, config.near_duplicate_colour)

    def extract(self, rows: pa.Table) -> dict[str, np.ndarray]:
        thumbnail_N = np.frombuffer(b"".join(rows["thumbnail"].to_pylist()), np.uint8)
        thumbnail_NDC = thumbnail_N.reshape(rows.num_rows, rows.schema.field("thumbnail").type.byte_width // 3, 3)
        return {"phash": rows["phash"].to_numpy().astype(np.uint64), "thumbnail": thumbnail_NDC}

    def drop(self, store: ColumnStore, left_M: np.ndarray) -> None:
        kept = _KeptIndexes(self.distance)
        # Rows without a neighbour are kept and cause no drop: this settles most rows.
        near_M = (
            find_rows_with_neighbours(store, "phash", left_M, self.distance)
            if self.distance <= SPARSE
            else left_M.copy()
        )
        for start in range(0, len(left_M), WINDOW):
            inside_W = np.flatnonzero(near_M[start : start + WINDOW])
            if not len(inside_W):
                continue
            hash_W, position_W = store.read("phash", start, start + WINDOW)[inside_W], inside_W + start
            stay_W = np.ones(len(inside_W), bool)
            self._drop_alike_in(store, kept.large, hash_W, position_W, stay_W)
            for begin in range(0, len(inside_W), BLOCK):
                block_B = begin + np.flatnonzero(stay_W[begin : begin + BLOCK])
                hash_B, position_B = hash_W[block_B], position_W[block_B]
                stay_B = np.ones(len(block_B), bool)
                self._drop_alike_in(store, kept.recent(), hash_B, position_B, stay_B)
                self._drop_alike_within(hash_B, store.take("thumbnail", position_B), stay_B)
                stay_W[block_B[~stay_B]] = False
                kept.add(hash_B[stay_B], position_B[stay_B])
            left_M[position_W[~stay_W]] = False
            kept.merge_medium()

    def _drop_alike_in(
        self,
        store: ColumnStore,
        indexes: list[_PositionedIndex],
        hash_Q: np.ndarray,
        position_Q: np.ndarray,
        stay_Q: np.ndarray,
    ) -> None:
        """Clears ``stay_Q`` of rows that are alike to a row of the indexes."""
        for index, position_N in indexes:
            for query_P, row_P in index.pairs(hash_Q, stay_Q):
                for piece in range(0, len(query_P), PIECE):
                    query, row = query_P[piece : piece + PIECE], row_P[piece : piece + PIECE]
                    query, row = query[stay_Q[query]], row[stay_Q[query]]
                    if len(query):
                        left_PDC = store.take("thumbnail", position_Q[query])
                        right_PDC = store.take("thumbnail", position_N[row])
                        alike_P = measure_thumbnail_distance(left_PDC, right_PDC) <= self.colour_distance
                        stay_Q[query[alike_P]] = False

    def _drop_alike_within(self, hash_B: np.ndarray, thumbnail_BDC: np.ndarray, stay_B: np.ndarray) -> None:
        """Clears ``stay_B`` of rows that are alike to an earlier kept row of the block."""
        index, open_B = HashIndex(hash_B, self.distance, BLOCK), stay_B.copy()
        found = [(q[q > n], n[q > n]) for q, n in index.pairs(hash_B, open_B)]
        later_P = np.concatenate([later for later, _ in found]) if found else np.zeros(0, np.int64)
        earlier_P = np.concatenate([earlier for _, earlier in found]) if found else np.zeros(0, np.int64)

        def is_alike(earlier: int, later: np.ndarray) -> np.ndarray:
            right_PDC = np.broadcast_to(thumbnail_BDC[earlier], (len(later), *thumbnail_BDC.shape[1:]))
            return measure_thumbnail_distance(thumbnail_BDC[later], right_PDC) <= self.colour_distance

        _keep_first(later_P, earlier_P, stay_B, is_alike)


class _KeptIndexes:
    """The kept rows so far as hash indexes, each with the positions of its rows.

    Log-structured, since the small index is rebuilt after every block: new rows go to the small index, which is merged
    into the medium and, between two windows, into the large one; full large indexes are frozen.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self.small: list[_PositionedIndex] = []  # none or one
        self.medium: list[_PositionedIndex] = []  # none or one
        self.large: list[_PositionedIndex] = []

    def recent(self) -> list[_PositionedIndex]:
        """Returns the indexes that may hold rows kept in this window."""
        return [*self.medium, *self.small]

    def add(self, hash_N: np.ndarray, position_N: np.ndarray) -> None:
        """Adds kept rows."""
        hash_N, position_N = _take_rows(self.small, hash_N, position_N.astype(np.uint32))
        if len(hash_N) < SMALL_ROWS:
            self.small = [(HashIndex(hash_N, self.distance, SMALL_ROWS), position_N)]
        else:
            hash_N, position_N = _take_rows(self.medium, hash_N, position_N)
            self.medium = [(HashIndex(hash_N, self.distance, MEDIUM_ROWS), position_N)]

    def merge_medium(self) -> None:
        """Merges a full medium index into the large one; call between windows, which look large indexes up once."""
        if self.medium and len(self.medium[0][1]) >= MEDIUM_ROWS:
            hash_N, position_N = _take_rows(self.medium, np.zeros(0, np.uint64), np.zeros(0, np.uint32))
            if self.large and len(self.large[-1][1]) < LARGE_ROWS:
                last = [self.large.pop()]
                hash_N, position_N = _take_rows(last, hash_N, position_N)
            self.large.append((HashIndex(hash_N, self.distance, LARGE_ROWS), position_N))


def _take_rows(
    source: list[_PositionedIndex], hash_N: np.ndarray, position_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Empties ``source`` and returns its rows, followed by the given ones."""
    if not source:
        return hash_N, position_N
    index, before_N = source.pop()
    return np.append(index.hash_N, hash_N), np.append(before_N, position_N)


class EmbeddingDuplicateKeys(Config):
    """Keys of `EmbeddingDuplicates`."""

    near_duplicate_cosine: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="drop images whose CLIP features have at least this cosine with an earlier image's (such as 0.96); "
        "time grows with the square of the rows; null: off",
    )


class EmbeddingDuplicates(SetFilter):
    """Drops rows whose CLIP image features have a cosine of at least ``cosine`` with those of an earlier kept row.

    Exact: compares all rows with all kept ones in blocks, so time grows with the square of the rows; memory does not.
    """

    keys = EmbeddingDuplicateKeys
    off: ClassVar = {"near_duplicate_cosine": None}
    remedies: ClassVar = {"clip_embedding": ("select.near_duplicate_cosine", "set score.embeddings=true")}
    catches = frozenset({"exact_duplicate", "near_duplicate"})
    columns = ("clip_embedding",)
    reason = "CLIP sees the same as in an earlier image"

    def __init__(self, cosine: float) -> None:
        self.cosine = cosine

    @classmethod
    def from_config(cls, config: EmbeddingDuplicateKeys, available: Collection[str]) -> Self | None:
        return None if config.near_duplicate_cosine is None else cls(config.near_duplicate_cosine)

    def extract(self, rows: pa.Table) -> dict[str, np.ndarray]:
        features = np.frombuffer(b"".join(rows["clip_embedding"].to_pylist()), "<f2")
        dim = rows.schema.field("clip_embedding").type.byte_width // 2
        return {"clip_embedding": features.reshape(rows.num_rows, dim)}

    def drop(self, store: ColumnStore, left_M: np.ndarray) -> None:
        for start in range(0, len(left_M), FEATURE_ROWS):
            inside_B = np.flatnonzero(left_M[start : start + FEATURE_ROWS])
            if not len(inside_B):
                continue
            feature_BD = _normalise_features(store.read("clip_embedding", start, start + FEATURE_ROWS)[inside_B])
            stay_B = np.ones(len(inside_B), bool)
            for _, before_KD in store.read_blocks("clip_embedding", left_M[:start], FEATURE_ROWS):
                asked = np.flatnonzero(stay_B)
                stay_B[asked[self._compare(feature_BD[asked], _normalise_features(before_KD)).any(axis=1)]] = False
            later_P, earlier_P = np.nonzero(np.tril(self._compare(feature_BD, feature_BD), -1))
            _keep_first(later_P, earlier_P, stay_B, lambda _, later: np.ones(len(later), bool))
            left_M[inside_B[~stay_B] + start] = False

    def _compare(self, left_BD: np.ndarray, right_KD: np.ndarray) -> np.ndarray:
        return np.round(left_BD @ right_KD.T, ROUND) >= round(self.cosine, ROUND)


def _normalise_features(feature_BD: np.ndarray) -> np.ndarray:
    feature_BD = feature_BD.astype(np.float32)
    return feature_BD / np.maximum(np.linalg.norm(feature_BD, axis=1, keepdims=True), 1e-12)


def _keep_first(
    later_P: np.ndarray,
    earlier_P: np.ndarray,
    stay_B: np.ndarray,
    is_alike: Callable[[int, np.ndarray], np.ndarray],
) -> None:
    """Clears ``stay_B`` of the later row of every pair whose earlier row is kept and ``is_alike`` to it, in order."""
    order_P = np.argsort(earlier_P, kind="stable")
    later_P, earlier_P = later_P[order_P], earlier_P[order_P]
    rows, begins = np.unique(earlier_P, return_index=True)
    for row, begin, end in zip(rows.tolist(), begins, np.append(begins, len(later_P))[1:], strict=True):
        if stay_B[row]:
            later = np.unique(later_P[begin:end])
            later = later[stay_B[later]]
            if len(later):
                stay_B[later[is_alike(row, later)]] = False


def measure_thumbnail_distance(left_PDC: np.ndarray, right_PDC: np.ndarray) -> np.ndarray:
    """Returns how much uint8 thumbnails (P pairs, D cells, 3 channels) differ: grey levels (P,) in the worst cell.

    A common factor within `MAX_GAIN` (a change of brightness) is first removed by least squares. The worst cell, not
    the mean: a small object that differs changes the mean as little as re-encoding does.
    """
    left_PDC, right_PDC = left_PDC.astype(np.float32), right_PDC.astype(np.float32)
    energy_P = np.maximum((right_PDC**2).sum(axis=(1, 2)), 1e-6)
    gain_P = np.clip((left_PDC * right_PDC).sum(axis=(1, 2)) / energy_P, 1 / MAX_GAIN, MAX_GAIN)
    delta_PDC = left_PDC - gain_P[:, None, None] * right_PDC
    return np.sqrt((delta_PDC**2).mean(axis=2)).max(axis=1, initial=0.0)
