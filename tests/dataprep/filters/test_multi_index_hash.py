"""The hash index against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.filters.multi_index_hash import HashIndex, plan_bands


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 16), st.sampled_from([10, 1000, 1 << 16, 1 << 20]))
def test_an_index_finds_every_close_pair_and_no_other(seed: int, distance: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    if distance > 9 and rows > 1000:
        rows = 1000  # the same search, with fewer probes
    hash_N = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, distance, False)) for _ in range(40)]
    hash_Q = np.concatenate([hash_N ^ np.array(flips, np.uint64), hash_N[:3]])
    index = HashIndex(hash_N, distance, rows)
    pieces = list(index.pairs(hash_Q, np.ones(len(hash_Q), bool)))
    found = {pair for query, row_ in pieces for pair in zip(query.tolist(), row_.tolist(), strict=True)}
    difference_QN = np.bitwise_count(hash_Q[:, None] ^ hash_N)
    assert found == set(zip(*(axis.tolist() for axis in np.nonzero(difference_QN <= distance)), strict=True))


@pytest.mark.parametrize("distance", range(17))
def test_the_bands_leave_no_room_for_a_close_pair_beyond_them_all(distance: int) -> None:
    for rows in (1, 1 << 10, 1 << 16, 1 << 20):
        bands = plan_bands(distance, rows)
        radii = [int(np.bitwise_count(band.masks).max()) for band in bands]
        everything = any(radius == band.bits for radius, band in zip(radii, bands, strict=True))
        assert everything or sum(radius + 1 for radius in radii) > distance
        used = [bit for band in bands for bit in range(band.shift, band.shift + band.bits)]
        assert len(used) == len(set(used)) and max(used) < 64
