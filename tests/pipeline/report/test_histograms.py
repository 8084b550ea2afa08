"""Histograms hold every row in few bins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.histograms import BINS, Histogram


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 10**7), st.booleans()), min_size=1, max_size=60))
def test_bins_hold_every_row_and_are_few(rows: list[tuple[int, bool]]) -> None:
    values, keep = (np.asarray(part) for part in zip(*rows, strict=True))
    histogram = Histogram("x", "y", 1)
    for half in (slice(0, 9), slice(9, None)):  # shard by shard
        histogram.add(values[half].astype(float), keep[half].astype(bool))
    bins = histogram.bins()
    assert bins is not None
    assert (sum(bins["kept"]), sum(bins["dropped"])) == (keep.sum(), (~keep.astype(bool)).sum())
    assert len(bins["left"]) == len(bins["kept"]) <= BINS + 1
    assert all(b - a == pytest.approx(bins["width"]) for a, b in pairwise(bins["left"]))


def test_bins_of_fractions_and_of_no_rows() -> None:
    histogram = Histogram("x", "cosine", 0.01)
    assert histogram.bins() is None
    histogram.add(np.asarray([np.nan]), np.ones(1, bool))
    assert histogram.bins() is None
    histogram.add(np.asarray([-0.2, 0.3, 0.304, np.nan]), np.asarray([False, True, True, True]))
    bins = histogram.bins()
    assert bins is not None
    assert bins["left"][0] == -0.2
    assert (bins["kept"][-1], bins["dropped"][0], bins["last"]) == (2, 1, 0.3)
