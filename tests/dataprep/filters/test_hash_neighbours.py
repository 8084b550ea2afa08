"""The neighbour search against brute force."""

from __future__ import annotations

import tempfile
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.filters import hash_neighbours
from dataprep.filters.column_store import ColumnStore
from dataprep.filters.hash_neighbours import find_rows_with_neighbours, plan_choices


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    distance=st.integers(0, 8),
    flips=st.integers(0, 12),
    planned=st.sampled_from([10, 10**5, 10**7]),
    bucket=st.sampled_from([40, 1 << 16]),
    block=st.sampled_from([30, 1 << 16]),
    large=st.sampled_from([2, 32]),
)
def test_neighbours_are_those_of_comparing_all(
    seed: int, distance: int, flips: int, planned: int, bucket: int, block: int, large: int
) -> None:
    rng = np.random.default_rng(seed)
    # A few clouds of like hashes, and hashes with nothing near; some equal ones.
    centre_N = rng.choice(rng.integers(0, 2**64, 100, dtype=np.uint64), 400)
    hash_N = centre_N.copy()
    for row_ in np.flatnonzero(rng.random(400) < 0.7):
        chosen = rng.choice(64, int(rng.integers(0, flips + 1)), False)
        hash_N[row_] ^= np.uint64(sum(1 << int(bit) for bit in chosen))
    left_M = rng.random(400) < 0.8
    difference_NN = np.bitwise_count(hash_N[:, None] ^ hash_N) <= distance
    expected = (difference_NN[:, left_M].sum(axis=1) > 1) & left_M
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder, ColumnStore(folder) as store:
        choices = plan_choices(max(1, distance), planned)
        patch.setattr(hash_neighbours, "plan_choices", lambda *_: choices)
        for name, value in {"PARTITION_ROWS": bucket, "BLOCK": block, "LARGE": large}.items():
            patch.setattr(hash_neighbours, name, value)
        store.append("hash", hash_N)
        np.testing.assert_array_equal(find_rows_with_neighbours(store, "hash", left_M, distance), expected)


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


def test_a_cluster_of_similar_hashes_costs_about_its_size() -> None:
    # All differ in few bits, so that every choice has them side by side: compared all with all, minutes.
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 64, (60_000, 2)).astype(np.uint64)
    hash_N = (np.uint64(1) << bits[:, 0]) | (np.uint64(1) << bits[:, 1])
    hash_N[:30_000] |= rng.integers(0, 2**20, 30_000).astype(np.uint64) << np.uint64(44)
    with tempfile.TemporaryDirectory() as folder, ColumnStore(folder) as store:
        store.append("hash", hash_N)
        near_N = find_rows_with_neighbours(store, "hash", np.ones(len(hash_N), bool), 6)
    assert near_N.mean() > 0.99
