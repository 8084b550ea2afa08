"""Which 64-bit hashes have another one within a distance, exactly: what has none cannot be a near duplicate.

Cut the bits into m blocks. Two hashes that differ in at most d bits are equal in m - d blocks or more, so some choice
of m - d blocks has them side by side once the hashes are sorted by it (Manku, Jain and Das Sarma, "Detecting
near-duplicates for web crawling", WWW 2007). A sort costs the same for each row however many there are, where an index
of all rows that is asked for every one of them misses the processor's caches ever more often. A choice of few bits has
rows side by side by mere chance, more of them the more rows there are: `plan_choices` weighs that against the number
of sorts, so the price of a row grows in steps: within 6 bits there are 28 sorts at 10^5 rows, 84 at 10^6, 462 at 10^8.

The rows are dealt to buckets on disk by the first block of a choice, and sorted a bucket at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, groupby, pairwise
from math import comb

import numpy as np

from dataprep.spill import Spill

HASH_BITS = 64
INDEX_BITS = 28  # of a sorted number; above are the up to 36 bits of a choice
BUCKET_ROWS = 1 << 16  # on average: a sort of so many stays in the processor's cache
BLOCK = 1 << 16  # rows read at a time
LARGE = 32  # rows that are equal in a choice, from which on they are not compared all with all
MOST_CHOICES = 4096
SORT_COST, PAIR_COST = 1.0, 1.2  # of a row, of a comparison: what counts is their ratio


@dataclass(frozen=True)
class Block:
    """Neighbouring bits of a hash."""

    shift: int
    bits: int

    def value(self, hash_N: np.ndarray) -> np.ndarray:
        """The block's bits of each hash, uint64."""
        return (hash_N >> np.uint64(self.shift)) & np.uint64((1 << self.bits) - 1)


@cache
def plan_choices(distance: int, rows: int) -> tuple[tuple[Block, ...], ...]:
    """The choices of blocks that find every pair within ``distance`` (1 or more), cheapest for so many rows."""

    def cost(blocks: int) -> float:
        bits = HASH_BITS * (blocks - distance) // blocks
        return comb(blocks, distance) * (SORT_COST + PAIR_COST * rows / 2 ** (bits + 1))

    possible = [blocks for blocks in range(distance + 1, 2 * distance + 1) if comb(blocks, distance) <= MOST_CHOICES]
    best = min(possible, key=cost)
    starts = [HASH_BITS * place // best for place in range(best + 1)]
    blocks = [Block(start, stop - start) for start, stop in pairwise(starts)]
    return tuple(combinations(blocks, best - distance))


def with_neighbours(spill: Spill, name: str, left_M: np.ndarray, distance: int) -> np.ndarray:
    """Which of the rows left have another of them within ``distance``: bool (M,), of column ``name``, uint64 hashes.

    In memory are the hashes of one bucket, and of the rows of equal hash in it one each.
    """
    rows = int(left_M.sum())
    near_M = np.zeros(len(left_M), bool)
    for first, choices in groupby(plan_choices(max(1, distance), rows), key=lambda choice: choice[0]):
        rest = [choice[1:] for choice in choices]
        count = min(max(1, rows // BUCKET_ROWS), 1 << first.bits)
        for bucket in spill.deal(name, left_M, _bucket_of(first, count), count, BLOCK):
            hash_U, position_U = _distinct(bucket, near_M)
            near_M[position_U[_near(hash_U, first, rest, distance)]] = True
    return near_M


def _bucket_of(block: Block, count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda hash_B: (block.value(hash_B) * np.uint64(count)) >> np.uint64(block.bits)


def _distinct(bucket: Iterator[tuple[np.ndarray, np.ndarray]], near_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of a bucket, each once, and a row of each; sets ``near_M`` of rows that share their hash."""
    hash_U, position_U = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for position_B, hash_B in bucket:
        hash_U, position_U = np.append(hash_U, hash_B), np.append(position_U, position_B)
        order = np.argsort(hash_U)
        hash_U, position_U = hash_U[order], position_U[order]
        again = np.flatnonzero(hash_U[1:] == hash_U[:-1])
        near_M[position_U[again]] = near_M[position_U[again + 1]] = True
        hash_U, position_U = np.delete(hash_U, again + 1), np.delete(position_U, again + 1)
    return hash_U, position_U


def _near(hash_U: np.ndarray, first: Block, rest: list[tuple[Block, ...]], distance: int) -> np.ndarray:
    """Which distinct hashes have another within ``distance`` that equals them in ``first`` and one of ``rest``."""
    assert len(hash_U) < 1 << INDEX_BITS
    near_U = np.zeros(len(hash_U), bool)
    index_U = np.arange(len(hash_U), dtype=np.uint64)
    for blocks in rest:
        key_U = first.value(hash_U)
        for block in blocks:
            key_U = key_U << np.uint64(block.bits) | block.value(hash_U)
        key_U = key_U << np.uint64(INDEX_BITS) | index_U
        key_U.sort()
        _compare(hash_U, key_U >> np.uint64(INDEX_BITS), key_U & np.uint64((1 << INDEX_BITS) - 1), distance, near_U)
    return near_U


def _compare(hash_U: np.ndarray, value_U: np.ndarray, order_U: np.ndarray, distance: int, near_U: np.ndarray) -> None:
    """Sets ``near_U`` of hashes within ``distance`` of another of their value; they stand in the order of the values.

    Each with the next, the next but one, and so on; where more than `LARGE` are equal, those known to have a neighbour
    are asked for no other, so that a cloud of like hashes costs about its size.
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
