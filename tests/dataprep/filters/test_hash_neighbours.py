"""The neighbour search against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.filters import exchange as filters_exchange
from dataprep.filters import hash_neighbours
from dataprep.filters.components import Forest
from dataprep.filters.exchange import MAX_PARTS, PART_BYTES
from dataprep.filters.hash_neighbours import HASH, HashExchange, link_hashes, plan_choices, plan_exchange


def link_all(hash_N: np.ndarray, exchange: HashExchange) -> np.ndarray:
    """Returns the smallest row that each row is connected to, over all prefixes and pieces of parts."""
    forest = Forest(len(hash_N))
    for prefix in exchange.prefixes:
        share_N = prefix.find_share(hash_N, exchange.division.shares)
        for share in range(exchange.division.shares):
            own_M = np.flatnonzero(share_N == share)
            node_K, to_K = link_hashes(hash_N[own_M], prefix, exchange.distance)
            assert len(np.unique(node_K)) == len(node_K)  # trees: one edge a hash at most
            forest.join(own_M[node_K], own_M[to_K])
    return forest.find(np.arange(len(hash_N)))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    distance=st.integers(0, 8),
    flips=st.integers(0, 12),
    planned=st.sampled_from([10, 10**5, 10**7]),
    part_bytes=st.sampled_from([600, 1 << 24]),
    large=st.sampled_from([2, 32]),
    sorted_rows=st.sampled_from([20, 1 << 16]),
)
def test_hashes_are_connected_as_by_comparing_all(
    seed: int, distance: int, flips: int, planned: int, part_bytes: int, large: int, sorted_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    # A few clouds of like hashes, and hashes with nothing near; some equal ones.
    hash_N = rng.choice(rng.integers(0, 2**64, 100, dtype=np.uint64), 400)
    for row_ in np.flatnonzero(rng.random(400) < 0.7):
        chosen = rng.choice(64, int(rng.integers(0, flips + 1)), False)
        hash_N[row_] ^= np.uint64(sum(1 << int(bit) for bit in chosen))
    close_P = np.nonzero(np.bitwise_count(hash_N[:, None] ^ hash_N) <= distance)
    expected = Forest(400)
    expected.join(*close_P)
    with pytest.MonkeyPatch.context() as patch:
        choices = plan_choices(max(1, distance), planned)
        patch.setattr(hash_neighbours, "plan_choices", lambda *_: choices)
        patch.setattr(hash_neighbours, "LARGE", large)
        patch.setattr(hash_neighbours, "SORTED_ROWS", sorted_rows)
        patch.setattr(filters_exchange, "PART_BYTES", part_bytes)
        found_N = link_all(hash_N, plan_exchange(distance, 400))
    np.testing.assert_array_equal(found_N, expected.find(np.arange(400)))


@pytest.mark.parametrize("distance", range(1, 11))
def test_a_close_pair_is_equal_in_some_choice(distance: int) -> None:
    for rows in (1, 10**5, 10**7, 10**10):
        choices = plan_choices(distance, rows)
        blocks = sorted({block.shift for choice in choices for block in choice})
        assert sum({block.shift: block.bits for choice in choices for block in choice}.values()) == 64
        # Whatever `distance` blocks the differing bits are in, all others make a choice.
        assert {frozenset(block.shift for block in choice) for choice in choices} == {
            frozenset(blocks) - set(hit) for hit in combinations(blocks, distance)
        }
        assert max(sum(block.bits for block in choice) for choice in choices) <= 36  # beside the index


@pytest.mark.parametrize("rows", [10, 10**6, 10**8, 10**9, 10**10])
def test_what_a_task_holds_does_not_grow_with_the_rows(rows: int) -> None:
    exchange = plan_exchange(6, rows)
    choices = set(plan_choices(6, rows))
    assert {(*prefix.blocks, *rest) for prefix in exchange.prefixes for rest in prefix.rests} == choices
    assert exchange.count <= MAX_PARTS
    shares = exchange.division.shares
    for prefix in exchange.prefixes:  # the values of a prefix are dealt out about evenly
        assert -(-(2**prefix.bits) // shares) / 2**prefix.bits * rows * HASH.itemsize <= 1.5 * PART_BYTES


def test_a_cluster_of_similar_hashes_costs_about_its_size() -> None:
    # All differ in few bits, so that every choice has them side by side: compared all with all, minutes.
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 64, (60_000, 2)).astype(np.uint64)
    hash_N = (np.uint64(1) << bits[:, 0]) | (np.uint64(1) << bits[:, 1])
    hash_N[:30_000] |= rng.integers(0, 2**20, 30_000).astype(np.uint64) << np.uint64(44)
    label_N = link_all(hash_N, plan_exchange(6, len(hash_N)))
    assert np.bincount(label_N).max() > 0.99 * len(hash_N)
