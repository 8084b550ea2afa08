"""Sets of features: exact moments, and a bounded subsample."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.feature_sets import Moments, Subsample


def moments(features_ND: np.ndarray) -> Moments:
    found = Moments(features_ND.shape[1])
    found.add(features_ND)
    return found


def test_exact_sums_equal_float64_ones() -> None:
    rows = np.random.default_rng(8).normal(3, 1, (5000, 9)).astype(np.float32)
    found = moments(rows)
    np.testing.assert_allclose(found.mean(), rows.astype(np.float64).mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.covariance(), np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-7, atol=1e-8)


def test_a_subsample_is_bounded_and_of_the_whole_set() -> None:
    sample = Subsample(10)
    for start in range(0, 1000, 50):
        sample.add([str(start + row) for row in range(50)], np.arange(start, start + 50)[:, None])
        assert len(sample.rows) <= 70
    taken = np.concatenate(sample.taken())
    assert len(taken) == 10
    assert taken.max() > 500 > taken.min()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 200.0])
def test_features_that_do_not_fit_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and below"):
        moments(np.full((2, 3), bad, np.float32))


def test_other_shapes_and_single_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows have no covariance"):
        moments(np.zeros((1, 3))).covariance()
    with pytest.raises(ValueError, match=r"give \(N, 3\)"):
        Moments(3).add(np.zeros((1, 4)))
