"""Finds, exactly, all 64-bit hashes with another one within a Hamming distance; others cannot be near duplicates.

Split the bits into m blocks. Two hashes that differ in at most d bits agree in at least m - d blocks, so sorting by
some choice of m - d blocks places them side by side (Manku, Jain and Das Sarma, "Detecting near-duplicates for web
crawling", WWW 2007). The cost of sorting per row does not grow with the rows, while random access to an index of all
rows misses the CPU caches ever more often. A choice of few bits also places rows side by side by chance, the more rows
there are; `plan_choices` trades that against the number of sorts: within 6 bits 28 sorts at 10^5 rows, 84 at 10^6, 462
at 10^8.

Rows are partitioned on disk by the first block of a choice and sorted one partition at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, groupby, pairwise
from math import comb

import numpy as np

from dataprep.filters.column_store import ColumnStore

HASH_BITS = 64
INDEX_BITS = 28  # low bits of a sort key; up to 36 bits of a choice are above
PARTITION_ROWS = 1 << 16  # mean rows per partition, so that a sort stays in the CPU cache
BLOCK = 1 << 16  # rows read at a time
LARGE = 32  # rows equal in a choice, above which not all pairs are compared
MOST_CHOICES = 4096
SORT_COST, PAIR_COST = 1.0, 1.2  # per row, per comparison; only the ratio matters


@dataclass(frozen=True)
class HashBlock:
    """Consecutive bits of a hash."""

    shift: int
    bits: int

    def value(self, hash_N: np.ndarray) -> np.ndarray:
        """Returns the block's bits of each hash, uint64."""
        return (hash_N >> np.uint64(self.shift)) & np.uint64((1 << self.bits) - 1)


@cache
def plan_choices(distance: int, rows: int) -> tuple[tuple[HashBlock, ...], ...]:
    """Returns the cheapest choices of blocks, for ``rows``, that find every pair within ``distance`` (at least 1)."""

    def cost(blocks: int) -> float:
        bits = HASH_BITS * (blocks - distance) // blocks
        return comb(blocks, distance) * (SORT_COST + PAIR_COST * rows / 2 ** (bits + 1))

    possible = [blocks for blocks in range(distance + 1, 2 * distance + 1) if comb(blocks, distance) <= MOST_CHOICES]
    best = min(possible, key=cost)
    starts = [HASH_BITS * place // best for place in range(best + 1)]
    blocks = [HashBlock(start, stop - start) for start, stop in pairwise(starts)]
    return tuple(combinations(blocks, best - distance))


def find_rows_with_neighbours(store: ColumnStore, name: str, left_M: np.ndarray, distance: int) -> np.ndarray:
    """Finds the rows with another row within ``distance``, among those left: bool (M,). Column ``name``: uint64 hashes.

    Holds the distinct hashes of one partition in memory.
    """
    rows = int(left_M.sum())
    near_M = np.zeros(len(left_M), bool)
    for first, choices in groupby(plan_choices(max(1, distance), rows), key=lambda choice: choice[0]):
        rest = [choice[1:] for choice in choices]
        count = min(max(1, rows // PARTITION_ROWS), 1 << first.bits)
        for partition in store.partition(name, left_M, _number_partitions(first, count), count, BLOCK):
            hash_U, position_U = _read_distinct(partition, near_M)
            near_M[position_U[_find_near(hash_U, first, rest, distance)]] = True
    return near_M


def _number_partitions(block: HashBlock, count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda hash_B: (block.value(hash_B) * np.uint64(count)) >> np.uint64(block.bits)


def _read_distinct(
    partition: Iterator[tuple[np.ndarray, np.ndarray]], near_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct hashes of a partition and a row of each; sets ``near_M`` of rows that share a hash."""
    hash_U, position_U = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for position_B, hash_B in partition:
        hash_U, position_U = np.append(hash_U, hash_B), np.append(position_U, position_B)
        order = np.argsort(hash_U)
        hash_U, position_U = hash_U[order], position_U[order]
        again = np.flatnonzero(hash_U[1:] == hash_U[:-1])
        near_M[position_U[again]] = near_M[position_U[again + 1]] = True
        hash_U, position_U = np.delete(hash_U, again + 1), np.delete(position_U, again + 1)
    return hash_U, position_U


def _find_near(hash_U: np.ndarray, first: HashBlock, rest: list[tuple[HashBlock, ...]], distance: int) -> np.ndarray:
    """Finds distinct hashes with another within ``distance`` that is equal in ``first`` and one of ``rest``."""
    assert len(hash_U) < 1 << INDEX_BITS
    near_U = np.zeros(len(hash_U), bool)
    index_U = np.arange(len(hash_U), dtype=np.uint64)
    for blocks in rest:
        key_U = first.value(hash_U)
        for block in blocks:
            key_U = key_U << np.uint64(block.bits) | block.value(hash_U)
        key_U = key_U << np.uint64(INDEX_BITS) | index_U
        key_U.sort()
        _mark_close_pairs(
            hash_U, key_U >> np.uint64(INDEX_BITS), key_U & np.uint64((1 << INDEX_BITS) - 1), distance, near_U
        )
    return near_U


def _mark_close_pairs(
    hash_U: np.ndarray, value_U: np.ndarray, order_U: np.ndarray, distance: int, near_U: np.ndarray
) -> None:
    """Sets ``near_U`` of hashes within ``distance`` of another of the same value; ``order_U`` sorts them by value.

    Compares each with the next, the second next, and so on. In groups of more than `LARGE` equal values, hashes with a
    known neighbour are not compared further, so a cluster of similar hashes costs about its size.
    """
    start_P = np.flatnonzero(value_U[1:] == value_U[:-1])
    for ahead in range(1, LARGE):
        left_P, right_P = order_U[start_P], order_U[start_P + ahead]
        close_P = np.bitwise_count(hash_U[left_P] ^ hash_U[right_P]) <= distance
        near_U[left_P[close_P]] = near_U[right_P[close_P]] = True
        start_P = start_P[: np.searchsorted(start_P, len(value_U) - ahead - 1)]
        start_P = start_P[value_U[start_P + ahead + 1] == value_U[start_P]]
        if not len(start_P):
            return
    for value in np.unique(value_U[start_P]):
        member_G = order_U[np.searchsorted(value_U, value) : np.searchsorted(value_U, value, side="right")]
        for place in member_G[~near_U[member_G]]:
            if not near_U[place]:
                close_G = np.bitwise_count(hash_U[member_G] ^ hash_U[place]) <= distance
                if np.count_nonzero(close_G) > 1:
                    near_U[member_G[close_G]] = True
