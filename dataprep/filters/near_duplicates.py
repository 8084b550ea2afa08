"""Filter on images that look alike by perceptual hash and colours."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.filters.column_store import ColumnStore
from dataprep.filters.components import count_edge_parts
from dataprep.filters.exchange import NONE, Parts
from dataprep.filters.hash_neighbours import EmitHashes, LinkHashes, plan_exchange
from dataprep.filters.left_rows import LeftRows
from dataprep.filters.look_alike import Described, LookAlike, keep_first
from dataprep.filters.multi_index_hash import HashIndex
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1024  # rows compared among themselves
PIECE = 1 << 12  # thumbnails compared together
WINDOW = 1 << 15  # rows looked up in a large index together: sorted lookups keep its table in the CPU cache
SMALL_ROWS, MEDIUM_ROWS, LARGE_ROWS = 1 << 13, 1 << 16, 1 << 20  # kept rows per index
SPARSE = 10  # bits up to which few of a million rows have a neighbour by chance
MAX_GAIN = 1.2
THUMBNAIL_CELLS = 64
UNSET = 1 << 62  # above every row

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


@dataclass(frozen=True)
class NearDuplicates(LookAlike):
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

    distance: int
    colour_distance: float

    @classmethod
    def from_config(cls, config: NearDuplicateKeys, available: Collection[str]) -> Self | None:
        if config.near_duplicate_bits is None:
            return None
        return cls(config.near_duplicate_bits, config.near_duplicate_colour)

    def link(self, rows: LeftRows) -> Parts | None:
        if self.distance > SPARSE:
            return None
        exchange = plan_exchange(self.distance, rows.count)
        arguments = {"exchange": exchange, "parts": exchange.count}
        hashes = rows.emit("hashes", EmitHashes, arguments, ("phash",))
        parts = count_edge_parts(rows.count)
        arguments = {"hashes": hashes, "exchange": exchange, "parts": parts}
        return rows.exchange("links", LinkHashes, arguments, exchange.count, parts)

    def describe_member(self, rows: LeftRows) -> Described:
        return ("phash", "<u8", ()), ("thumbnail", "|u1", (THUMBNAIL_CELLS, 3))

    def extract(self, rows: pa.Table) -> dict[str, np.ndarray]:
        thumbnail_N = np.frombuffer(b"".join(rows["thumbnail"].to_pylist()), np.uint8)
        return {
            "phash": rows["phash"].to_numpy().astype(np.uint64),
            "thumbnail": thumbnail_N.reshape(rows.num_rows, THUMBNAIL_CELLS, 3),
        }

    def find_originals(self, members: Iterator[np.ndarray], folder: str) -> tuple[np.ndarray, np.ndarray]:
        with tempfile.TemporaryDirectory(dir=folder) as scratch, ColumnStore(scratch) as store:
            hashes, positions = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
            for member_N in members:
                store.append("thumbnail", np.ascontiguousarray(member_N["thumbnail"]))
                hashes.append(member_N["phash"].copy())
                positions.append(member_N["position"].copy())
            position_N = np.concatenate(positions)
            assert (np.diff(position_N) > 0).all(), "rows are not in their order"
            original_N = self._find_in_order(np.concatenate(hashes), store)
        gone_K = np.flatnonzero(original_N != NONE)
        return position_N[gone_K], position_N[original_N[gone_K]]

    def _find_in_order(self, hash_N: np.ndarray, store: ColumnStore) -> np.ndarray:
        """Returns for each row the first kept row that it is alike to, or `NONE` for rows to keep."""
        original_N = np.full(len(hash_N), NONE)
        kept = _KeptIndexes(self.distance)
        for start in range(0, len(hash_N), WINDOW):
            row_W = np.arange(start, min(start + WINDOW, len(hash_N)))
            original_N[row_W] = self._look_up(store, kept.large, hash_N[row_W], row_W)
            for begin in range(start, row_W[-1] + 1, BLOCK):
                row_B = np.arange(begin, min(begin + BLOCK, row_W[-1] + 1))
                row_B = row_B[original_N[row_B] == NONE]
                original_B = self._look_up(store, kept.recent(), hash_N[row_B], row_B)
                original_N[row_B] = original_B
                row_B = row_B[original_B == NONE]
                within_B = self._find_within(hash_N[row_B], store.take("thumbnail", row_B))
                gone_B = within_B != NONE
                original_N[row_B[gone_B]] = row_B[within_B[gone_B]]
                kept.add(hash_N[row_B[~gone_B]], row_B[~gone_B])
            kept.merge_medium()
        return original_N

    def _look_up(
        self, store: ColumnStore, indexes: list[_PositionedIndex], hash_Q: np.ndarray, row_Q: np.ndarray
    ) -> np.ndarray:
        """Returns for each query the first row of the indexes that it is alike to, or `NONE`.

        The indexes hold rows in their order, so those after the first with such a row are not asked.
        """
        original_Q = np.full(len(row_Q), UNSET)
        for index, row_N in indexes:
            for query_P, found_P in index.pairs(hash_Q, original_Q == UNSET):
                for piece in range(0, len(query_P), PIECE):
                    query, row = query_P[piece : piece + PIECE], row_N[found_P[piece : piece + PIECE]].astype(np.int64)
                    query, row = query[row < original_Q[query]], row[row < original_Q[query]]
                    if len(query):
                        left_PDC = store.take("thumbnail", row_Q[query])
                        right_PDC = store.take("thumbnail", row)
                        alike_P = measure_thumbnail_distance(left_PDC, right_PDC) <= self.colour_distance
                        np.minimum.at(original_Q, query[alike_P], row[alike_P])
        original_Q[original_Q == UNSET] = NONE
        return original_Q

    def _find_within(self, hash_B: np.ndarray, thumbnail_BDC: np.ndarray) -> np.ndarray:
        """Returns for each row of a block the first kept row of the block that it is alike to, or `NONE`."""
        original_B = np.full(len(hash_B), NONE)
        index = HashIndex(hash_B, self.distance, BLOCK)
        found = [(q[q > n], n[q > n]) for q, n in index.pairs(hash_B, np.ones(len(hash_B), bool))]
        later_P = np.concatenate([np.zeros(0, np.int64), *(later for later, _ in found)])
        earlier_P = np.concatenate([np.zeros(0, np.int64), *(earlier for _, earlier in found)])

        def is_alike(earlier: int, later: np.ndarray) -> np.ndarray:
            right_PDC = np.broadcast_to(thumbnail_BDC[earlier], (len(later), *thumbnail_BDC.shape[1:]))
            return measure_thumbnail_distance(thumbnail_BDC[later], right_PDC) <= self.colour_distance

        keep_first(later_P, earlier_P, original_B, is_alike)
        return original_B


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
