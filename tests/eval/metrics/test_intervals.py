"""Bootstrap and Wilson intervals against known cases."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.intervals import bootstrap_mean, bootstrap_pairs, wilson_interval


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_mean(list(values))
    half = 1.96 * values.std(ddof=1) / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.05)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap_mean(list(values)) == found


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    sets = [rng.exponential(1, 60) for _ in range(200)]
    covered = [found["low"] <= 1 <= found["high"] for found in (bootstrap_mean(list(s), resamples=300) for s in sets)]
    assert 0.87 <= np.mean(covered) <= 0.99


def test_pairing_takes_out_what_both_have_in_common() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 100)
    one, other = hard, hard + 0.5 + rng.normal(0, 0.1, 100)
    found = bootstrap_pairs(100, lambda rows: float(other[rows].mean() - one[rows].mean()))
    assert 0.4 < found["low"] < found["value"] < found["high"] < 0.6
    same = bootstrap_pairs(100, lambda rows: float(one[rows].mean() - one[rows].mean()))
    assert (same["low"], same["high"]) == (0, 0)


def test_wilson_interval() -> None:
    found = wilson_interval(98, 100)
    assert (found["low"], found["high"]) == pytest.approx((0.9300, 0.9945), abs=1e-4)
    assert wilson_interval(5, 5)["high"] == pytest.approx(1)
