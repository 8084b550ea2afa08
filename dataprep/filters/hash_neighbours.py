"""Links, exactly, all rows whose 64-bit hashes are within a Hamming distance; others cannot be near duplicates.

Split the bits into m blocks. Two hashes that differ in at most d bits agree in at least m - d blocks, so sorting by
some choice of m - d blocks places them side by side (Manku, Jain and Das Sarma, "Detecting near-duplicates for web
crawling", WWW 2007). The cost of sorting per row does not grow with the rows, while random access to an index of all
rows misses the CPU caches ever more often. A choice of few bits also places rows side by side by chance, the more rows
there are; `plan_choices` trades that against the number of sorts: within 6 bits 28 sorts at 10^5 rows, 84 at 10^6, 462
at 10^8.

Rows are exchanged once for each prefix that choices share (a block, or several at many rows), dealt out by the bits of
the prefix, and sorted part by part by each of these choices. The prefixes share the parts of an exchange, so above some
5 * 10^7 rows a task works through its part in pieces, by further bits of the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, groupby, pairwise
from math import comb

import numpy as np

from dataprep.filters.components import EDGE, Forest, deal_both_ways
from dataprep.filters.exchange import Division, Parts, count_shares, divide
from dataprep.filters.left_rows import iterate_left
from dataprep.filters.steps import OpenTask, write_parts

HASH_BITS = 64
INDEX_BITS = 28  # low bits of a sort key; up to 36 bits of a choice are above
HASH = np.dtype([("hash", np.uint64), ("position", np.int64)])
SPARE_BITS = 2  # of a prefix beyond those that number the shares, so that these are about equal
SORTED_ROWS = 1 << 16  # sorted at a time, so that a sort stays in the CPU cache
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


@dataclass(frozen=True)
class HashPrefix:
    """Blocks that several choices begin with, their bits, and the other blocks of each of these choices."""

    blocks: tuple[HashBlock, ...]
    rests: tuple[tuple[HashBlock, ...], ...]

    def value(self, hash_N: np.ndarray) -> np.ndarray:
        """Returns the prefix's bits of each hash, uint64."""
        value_N = np.zeros(len(hash_N), np.uint64)
        for block in self.blocks:
            value_N = value_N << np.uint64(block.bits) | block.value(hash_N)
        return value_N

    @property
    def bits(self) -> int:
        """The number of bits."""
        return sum(block.bits for block in self.blocks)

    def find_share(self, hash_N: np.ndarray, shares: int) -> np.ndarray:
        """Returns the share of each hash, of ``shares`` with equally many values of the prefix."""
        return ((self.value(hash_N) * np.uint64(shares)) >> np.uint64(self.bits)).astype(np.int64)


@dataclass(frozen=True)
class HashExchange:
    """How hashes within ``distance`` meet: part p of prefix i is part i * parts + p of the exchange.

    ``division`` is that of the rows for one prefix.
    """

    distance: int
    prefixes: tuple[HashPrefix, ...]
    division: Division

    @property
    def count(self) -> int:
        """The parts of all prefixes."""
        return len(self.prefixes) * self.division.parts

    @property
    def sorts(self) -> int:
        """How often each hash is sorted."""
        return sum(len(prefix.rests) for prefix in self.prefixes)


def plan_exchange(distance: int, rows: int) -> HashExchange:
    """Plans the exchange of the hashes of ``rows`` rows, with prefixes just long enough to deal them out evenly."""
    choices, shares = plan_choices(max(1, distance), rows), count_shares(rows, HASH.itemsize)
    length, wanted = 1, SPARE_BITS + shares.bit_length()
    while length < len(choices[0]) and sum(block.bits for block in choices[0][:length]) < wanted:
        length += 1
    prefixes = [
        HashPrefix(blocks, tuple(choice[length:] for choice in some))
        for blocks, some in groupby(choices, key=lambda choice: choice[:length])
    ]
    return HashExchange(distance, tuple(prefixes), divide(rows, HASH.itemsize, len(prefixes)))


class EmitHashes:
    """Worker: deals out the hashes of a group's rows, once for each prefix."""

    def __init__(self, exchange: HashExchange, parts: int) -> None:
        self.exchange, self.parts = exchange, parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `HASH`."""
        return write_parts(task, self._deal(task), HASH, self.parts)

    def _deal(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        division = self.exchange.division
        for position_N, rows in iterate_left(task, ("phash",)):
            hash_N = np.empty(len(position_N), HASH)
            hash_N["hash"], hash_N["position"] = rows["phash"].to_numpy(), position_N
            for place, prefix in enumerate(self.exchange.prefixes):
                share_N = prefix.find_share(hash_N["hash"], division.shares)
                yield hash_N, place * division.parts + share_N // division.pieces


class LinkHashes:
    """Worker: links the rows of a part whose hashes are within the distance."""

    def __init__(self, hashes: Parts, exchange: HashExchange, parts: int) -> None:
        self.hashes, self.exchange, self.parts = hashes, exchange, parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `components.EDGE`, as `components.find_components` needs them."""
        return write_parts(task, self._link(task), EDGE, self.parts)

    def _link(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        division = self.exchange.division
        prefix = self.exchange.prefixes[task.id // division.parts]

        def find_piece(record_N: np.ndarray) -> np.ndarray:
            return prefix.find_share(record_N["hash"], division.shares) % division.pieces

        for record_N in division.read(self.hashes, task.id, HASH, find_piece, task.out):
            node_K, to_K = link_hashes(record_N["hash"], prefix, self.exchange.distance)
            position_N = record_N["position"]
            yield deal_both_ways(position_N[node_K], position_N[to_K], self.parts)


def link_hashes(hash_N: np.ndarray, prefix: HashPrefix, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Links hashes within ``distance`` that agree in a prefix and the rest of one of its choices.

    Returns (a hash, a hash that it is linked to): a tree over each set of hashes that such pairs connect. Equal hashes
    are linked as well.
    """
    hash_U, first_U, same_N = np.unique(hash_N, return_index=True, return_inverse=True)
    assert len(hash_U) < 1 << INDEX_BITS, f"{len(hash_U)} hashes in a part"
    forest, value_U = Forest(len(hash_U)), prefix.value(hash_U)
    row_U = np.argsort(value_U, kind="stable")
    # Cut where the prefix changes, at the first such place after each `SORTED_ROWS`.
    change_C = np.append(np.flatnonzero(np.diff(value_U[row_U])) + 1, len(row_U))
    cuts = np.unique(change_C[np.searchsorted(change_C, np.arange(SORTED_ROWS, len(row_U), SORTED_ROWS))])
    for own_U in np.split(row_U, cuts):
        _link_sorted(hash_U, own_U, prefix, distance, forest)
    node_K, root_K = forest.edges()
    again_K = np.flatnonzero(first_U[same_N] != np.arange(len(hash_N)))
    return np.append(first_U[node_K], again_K), np.append(first_U[root_K], first_U[same_N[again_K]])


def _link_sorted(hash_U: np.ndarray, own_V: np.ndarray, prefix: HashPrefix, distance: int, forest: Forest) -> None:
    """Joins the hashes ``own_V`` that are close, sorted by each choice of the prefix."""
    hash_V, index_V = hash_U[own_V], np.arange(len(own_V), dtype=np.uint64)
    prefix_V = prefix.value(hash_V)
    for blocks in prefix.rests:
        key_V = prefix_V
        for block in blocks:
            key_V = key_V << np.uint64(block.bits) | block.value(hash_V)
        key_V = key_V << np.uint64(INDEX_BITS) | index_V
        key_V.sort()
        value_V, order_V = key_V >> np.uint64(INDEX_BITS), key_V & np.uint64((1 << INDEX_BITS) - 1)
        _join_close_pairs(hash_U, value_V, own_V[order_V.astype(np.int64)], distance, forest)


def _join_close_pairs(
    hash_U: np.ndarray, value_U: np.ndarray, order_U: np.ndarray, distance: int, forest: Forest
) -> None:
    """Joins hashes within ``distance`` of each other with the same value; ``order_U`` sorts them by value.

    Compares each with the next, the second next, and so on. Groups of more than `LARGE` equal values are searched hash
    by hash, leaving out what is already joined, so a cluster of similar hashes costs about its size.
    """
    start_P = np.flatnonzero(value_U[1:] == value_U[:-1])
    for ahead in range(1, LARGE):
        left_P, right_P = order_U[start_P], order_U[start_P + ahead]
        close_P = np.bitwise_count(hash_U[left_P] ^ hash_U[right_P]) <= distance
        forest.join(left_P[close_P], right_P[close_P])
        start_P = start_P[: np.searchsorted(start_P, len(value_U) - ahead - 1)]
        start_P = start_P[value_U[start_P + ahead + 1] == value_U[start_P]]
        if not len(start_P):
            return
    for value in np.unique(value_U[start_P]):
        member_G = order_U[np.searchsorted(value_U, value) : np.searchsorted(value_U, value, side="right")]
        _join_group(hash_U, member_G, distance, forest)


def _join_group(hash_U: np.ndarray, member_G: np.ndarray, distance: int, forest: Forest) -> None:
    """Joins all members within ``distance``: walks from each member to the close ones that no walk has met."""
    while len(member_G):
        waiting, member_G = [int(member_G[0])], member_G[1:]
        while waiting and len(member_G):
            place = waiting.pop()
            close_G = np.bitwise_count(hash_U[member_G] ^ hash_U[place]) <= distance
            found_K, member_G = member_G[close_G], member_G[~close_G]
            forest.join(np.full(len(found_K), place), found_K)
            waiting += found_K.tolist()
