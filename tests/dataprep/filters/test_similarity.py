"""Filters by CLIP similarity."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.filters.similarity import TopSimilarity
from dataprep.io.errors import UserError
from tests.helpers.selection import OFF, decide, float32, reasons, row


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, 0.25, float("nan")])), min_size=1),
    st.floats(0.01, 1),
)
def test_the_top_fraction_is_that_of_a_sort(values: list[float], fraction: float) -> None:
    value_N = np.array(values)
    scores = {"clip_similarity": pa.array(value_N, from_pandas=False)}
    left_M, _ = decide(TopSimilarity(fraction), {}, scores=scores, shard_rows=5, group_rows=10)
    known = -np.sort(-value_N[~np.isnan(value_N)])
    if len(known):
        expected = value_N >= known[min(int(len(known) * fraction), len(known) - 1)]
    else:
        expected = np.zeros(len(values), bool)
    np.testing.assert_array_equal(left_M, expected)


def test_similarity_rules() -> None:
    rows = [row(index) for index in range(5)]
    scores = {"clip_similarity": float32([0.1, 0.3, None, 0.2, 0.4])}
    picked = reasons(rows, OFF, scores, min_similarity=0.2)
    assert [reason is None for reason in picked] == [False, True, False, True, True]
    top = OFF.model_copy(update={"top_similarity": 0.5})
    assert [reason is None for reason in reasons(rows, top, scores)] == [False, True, False, True, True]
    nothing = {"clip_similarity": float32([None] * 5)}
    for config, options, rule in ((OFF, {"min_similarity": 0.1}, "min_similarity"), (top, {}, "top_similarity")):
        with pytest.raises(UserError, match=f"nothing is left of 5 rows; {rule} dropped 5"):
            reasons(rows, config, nothing, **options)


def test_the_argument_overrides_the_key() -> None:
    scores = {"clip_similarity": float32([0.25])}
    config = OFF.model_copy(update={"min_similarity": 0.3})
    assert reasons([row(0)], config, scores, min_similarity=0.2) == [None]
