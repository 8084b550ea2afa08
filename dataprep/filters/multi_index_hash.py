"""Finds every pair of 64-bit hashes within a Hamming distance, exactly, without comparing all pairs.

Cut a hash into m disjoint bands and give band b a radius r_b such that the radii sum to distance - m + 1. Two hashes
that differ in at most ``distance`` bits are then within r_b in some band b: if they were beyond it in every band, they
would differ in at least sum(r_b + 1) = distance + 1 bits (the pigeonhole principle; Norouzi et al., arXiv 1307.2982).
So each band groups the rows by value, and a query visits the groups of all values within the band's radius of its own.
Candidates are compared over all 64 bits.

Legend: N rows of the index, Q queries, F probes a query and band, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb

import numpy as np

HASH_BITS = 64
BAND_BITS = 20  # a wider band needs a table larger than the CPU caches
PIECE = 1 << 18  # probes or pairs per step
SLOWEST = 17  # maximum bands


@dataclass(frozen=True)
class Band:
    """Consecutive bits of a hash, and all masks with at most ``radius`` of them set."""

    shift: int
    bits: int
    masks: np.ndarray  # uint32 (F,)

    def value(self, hash_N: np.ndarray) -> np.ndarray:
        """Returns the band's bits of each hash, uint32."""
        return ((hash_N >> np.uint64(self.shift)) & np.uint64((1 << self.bits) - 1)).astype(np.uint32)


@cache
def plan_bands(distance: int, rows: int) -> tuple[Band, ...]:
    """Returns the cheapest bands to find every pair within ``distance`` in an index of about ``rows`` rows.

    Trades the number of probes against the size of the groups.
    """

    def shape(count: int) -> list[tuple[int, int]]:
        # A table much larger than the index costs more to build than it saves.
        bits, spare = min(HASH_BITS // count, BAND_BITS, rows.bit_length() + 2), distance - count + 1
        return [(bits, spare // count + (band < spare % count)) for band in range(count)]

    def cost(bands: list[tuple[int, int]]) -> float:
        return sum(_count_probes(bits, radius) * (1 + rows / 2**bits) for bits, radius in bands)

    best = min((shape(count) for count in range(1, min(distance + 1, SLOWEST) + 1)), key=cost)
    starts = np.cumsum([0, *(bits for bits, _ in best)]).tolist()
    return tuple(
        Band(start, bits, _list_masks(bits, radius)) for start, (bits, radius) in zip(starts, best, strict=False)
    )


def _count_probes(bits: int, radius: int) -> int:
    return sum(comb(bits, changed) for changed in range(radius + 1))


def _list_masks(bits: int, radius: int) -> np.ndarray:
    chosen = (some for changed in range(radius + 1) for some in combinations(range(bits), changed))
    return np.array([sum(1 << bit for bit in some) for some in chosen], np.uint32)


class HashIndex:
    """An in-memory index of hashes, uint64 (N,): 20 bytes per row and up to 5 MB per band."""

    def __init__(self, hash_N: np.ndarray, distance: int, rows: int) -> None:
        self.hash_N, self.distance = hash_N, distance
        self.bands = plan_bands(distance, rows)
        self.groups = [_group_rows(band.value(hash_N), band.bits) for band in self.bands]

    def pairs(self, hash_Q: np.ndarray, open_Q: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (query, row) of all pairs within the distance, in pieces; a pair may occur more than once.

        Queries that the caller clears in ``open_Q`` between two pieces are skipped.
        """
        for band, (order_N, offset, filled) in zip(self.bands, self.groups, strict=True):
            asked_Q = np.flatnonzero(open_Q)
            value_Q = band.value(hash_Q[asked_Q])
            order_Q = np.argsort(value_Q)  # sorted queries read nearby table entries, for any mask
            asked_Q, value_Q = asked_Q[order_Q], value_Q[order_Q]
            step = max(1, PIECE // len(band.masks))
            for start in range(0, len(asked_Q), step):
                query = asked_Q[start : start + step]
                probe = (band.masks[:, None] ^ value_Q[start : start + step]).ravel()
                hit = np.flatnonzero(
                    filled.take(probe, mode="clip")
                )  # no probe is out of range; clip is the fastest mode
                for query_P, row_P in self._expand(query[hit % len(query)], probe[hit], order_N, offset):
                    differing_P = hash_Q.take(query_P)
                    differing_P ^= self.hash_N.take(row_P)
                    near_P = np.flatnonzero(np.bitwise_count(differing_P) <= self.distance)
                    near_P = near_P[open_Q[query_P[near_P]]]
                    if len(near_P):
                        yield query_P[near_P], row_P[near_P]

    def _expand(
        self, query_H: np.ndarray, probe_H: np.ndarray, order_N: np.ndarray, offset: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields all rows of each group that a probe hit, about `PIECE` pairs at a time."""
        first_H = offset[probe_H].astype(np.int64)
        size_H = offset[probe_H + 1] - first_H
        end_H = np.cumsum(size_H)
        begin = 0
        while begin < len(size_H):
            done = int(end_H[begin - 1]) if begin else 0
            stop = max(begin + 1, int(np.searchsorted(end_H, done + PIECE, side="right")))
            size_P = size_H[begin:stop]
            place_P = np.repeat(first_H[begin:stop] - (end_H[begin:stop] - size_P - done), size_P)
            place_P += np.arange(len(place_P))
            yield np.repeat(query_H[begin:stop], size_P), order_N.take(place_P)
            begin = stop


def _group_rows(value_N: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows sorted by value (int32), the start of each value's rows (int32), and which values occur (bool)."""
    row_bits = max(1, len(value_N)).bit_length()
    key_N = value_N.astype(np.uint64) << np.uint64(row_bits) | np.arange(len(value_N), dtype=np.uint64)
    key_N.sort()
    order_N = np.empty(len(key_N), np.int32)
    offset, filled = np.zeros((1 << bits) + 1, np.int32), np.zeros(1 << bits, bool)
    for start in range(0, len(key_N), PIECE):  # in pieces, since intermediate arrays would be larger than the index
        key_P = key_N[start : start + PIECE]
        order_N[start : start + PIECE] = key_P & np.uint64((1 << row_bits) - 1)
        value_P = (key_P >> np.uint64(row_bits)).astype(np.int64)
        first, last = int(value_P[0]), int(value_P[-1])
        offset[first + 1 : last + 2] += np.bincount(value_P - first).astype(np.int32)
        filled[value_P] = True
    np.cumsum(offset, out=offset)
    return order_N, offset, filled
