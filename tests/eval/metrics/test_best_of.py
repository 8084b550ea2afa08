"""The best of N candidates against enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from eval.metrics.best_of import expect_best_of, tabulate_best_of


def test_best_of_n_is_the_mean_over_all_choices() -> None:
    rng = np.random.default_rng(3)
    scores, values = rng.normal(size=(6, 4)), rng.integers(0, 2, (6, 4))
    for picked in (1, 2, 3, 4):
        expected = [
            np.mean([v[max(choice, key=lambda k: s[k])] for choice in combinations(range(4), picked)])
            for s, v in zip(scores, values, strict=True)
        ]
        np.testing.assert_allclose(expect_best_of(scores, values, picked), expected)
    with pytest.raises(ValueError, match="best of 5 among 4"):
        expect_best_of(scores, values, 5)


def test_of_equal_scores_the_first_candidate_is_taken() -> None:
    assert expect_best_of(np.zeros((1, 3)), np.asarray([[7, 0, 0]]), 3) == pytest.approx(7)


def test_the_table_goes_to_the_number_of_candidates() -> None:
    scores = np.random.default_rng(4).normal(size=(50, 6))
    rows = tabulate_best_of(scores, scores > 0)
    assert [row["n"] for row in rows] == [1, 2, 4, 6]
    values = [row["clip_score"]["value"] for row in rows]
    assert values == sorted(values)
    assert rows[0]["accuracy"]["low"] <= rows[0]["accuracy"]["value"] <= rows[0]["accuracy"]["high"]
    assert tabulate_best_of(scores, None)[0]["accuracy"] is None
