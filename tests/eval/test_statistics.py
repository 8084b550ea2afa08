"""Intervals that hold what they should, retrieval and the best of N on cases that are known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from eval.distances import Moments, frechet_distance
from eval.statistics import best_of, best_of_table, bootstrap_mean, bootstrap_pairs, retrieval, wilson


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
    covered = [found["low"] <= 1 <= found["high"] for found in (bootstrap_mean(list(s), draws=300) for s in sets)]
    assert 0.87 <= np.mean(covered) <= 0.99


def test_pairing_takes_out_what_both_have_in_common() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 100)
    one, other = hard, hard + 0.5 + rng.normal(0, 0.1, 100)
    found = bootstrap_pairs(100, lambda rows: float(other[rows].mean() - one[rows].mean()))
    assert 0.4 < found["low"] < found["value"] < found["high"] < 0.6
    same = bootstrap_pairs(100, lambda rows: float(one[rows].mean() - one[rows].mean()))
    assert (same["low"], same["high"]) == (0, 0)


def test_wilson() -> None:
    found = wilson(98, 100)
    assert (found["low"], found["high"]) == pytest.approx((0.9300, 0.9945), abs=1e-4)
    assert wilson(5, 5)["high"] == pytest.approx(1)


def test_retrieval_of_perfect_and_of_shuffled_captions() -> None:
    """Captions that several pictures share are right for each; shuffled captions fall to chance."""
    texts = np.eye(20)
    captions = [f"caption {index % 20}" for index in range(40)]
    images = np.concatenate([texts, texts])
    found = retrieval(images, images, captions)
    assert (found["n"], found["captions"], found["chance_at_5"]) == (40, 20, 0.25)
    assert all(found[key] == 1 for key in found if "recall" in key)

    order = np.random.default_rng(0).permutation(40)
    shuffled = retrieval(images, images[order], [captions[index] for index in order])
    assert all(shuffled[key] < 0.6 for key in shuffled if "recall" in key)
    blind = retrieval(np.ones((40, 20)), np.ones((40, 20)), captions)
    assert all(blind[key] == 0 for key in blind if "recall" in key)


def test_best_of_n_is_the_mean_over_all_choices() -> None:
    rng = np.random.default_rng(3)
    scores, values = rng.normal(size=(6, 4)), rng.integers(0, 2, (6, 4))
    for picked in (1, 2, 3, 4):
        expected = [
            np.mean([v[max(choice, key=lambda k: s[k])] for choice in combinations(range(4), picked)])
            for s, v in zip(scores, values, strict=True)
        ]
        np.testing.assert_allclose(best_of(scores, values, picked), expected)
    with pytest.raises(ValueError, match="best of 5 among 4"):
        best_of(scores, values, 5)


def test_of_equal_scores_the_first_candidate_is_taken() -> None:
    assert best_of(np.zeros((1, 3)), np.asarray([[7, 0, 0]]), 3) == pytest.approx(7)


def test_the_table_goes_to_the_number_of_candidates() -> None:
    scores = np.random.default_rng(4).normal(size=(50, 6))
    rows = best_of_table(scores, scores > 0)
    assert [row["n"] for row in rows] == [1, 2, 4, 6]
    values = [row["clip_score"]["value"] for row in rows]
    assert values == sorted(values)
    assert rows[0]["accuracy"]["low"] <= rows[0]["accuracy"]["value"] <= rows[0]["accuracy"]["high"]
    assert best_of_table(scores, None)[0]["accuracy"] is None


def test_shuffled_captions_are_noticed_by_scores_and_retrieval_alone() -> None:
    """Pairs of unit features that agree, and the same pictures with each other's captions."""
    rng = np.random.default_rng(0)
    text_ND = rng.normal(size=(200, 16))
    image_ND = text_ND + 0.3 * rng.normal(size=text_ND.shape)
    image_ND, text_ND = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (image_ND, text_ND))
    order = rng.permutation(200)
    captions = [str(row) for row in range(200)]
    right, wrong = (retrieval(image_ND, text, captions) for text in (text_ND, text_ND[order]))
    scores = [bootstrap_mean(np.einsum("nd,nd->n", image_ND, text).tolist()) for text in (text_ND, text_ND[order])]
    assert scores[0]["low"] > 0.9 > 0.1 > scores[1]["high"]
    for way in ("image_to_text", "text_to_image"):
        assert right[f"{way}_recall_at_1"] > 0.9 > 0.1 > wrong[f"{way}_recall_at_1"]
    # Which caption a picture has does not move the pictures: distances stay as they are.
    one, other = (Moments(16) for _ in range(2))
    one.add(image_ND)
    other.add(image_ND[order])
    assert frechet_distance(one, other) == pytest.approx(0, abs=1e-9)
