"""Retrieval on known cases."""

from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.distances import frechet_distance
from eval.metrics.feature_sets import Moments
from eval.metrics.intervals import bootstrap_mean
from eval.metrics.retrieval import measure_retrieval


def test_retrieval_of_perfect_and_of_shuffled_captions() -> None:
    """Captions that several images share are right for each; shuffled captions fall to chance."""
    texts = np.eye(20)
    captions = [f"caption {index % 20}" for index in range(40)]
    images = np.concatenate([texts, texts])
    found = measure_retrieval(images, images, captions)
    assert (found["n"], found["captions"], found["chance_at_5"]) == (40, 20, 0.25)
    assert all(found[key] == 1 for key in found if "recall" in key)

    order = np.random.default_rng(0).permutation(40)
    shuffled = measure_retrieval(images, images[order], [captions[index] for index in order])
    assert all(shuffled[key] < 0.6 for key in shuffled if "recall" in key)
    blind = measure_retrieval(np.ones((40, 20)), np.ones((40, 20)), captions)
    assert all(blind[key] == 0 for key in blind if "recall" in key)


def test_shuffled_captions_are_noticed_by_scores_and_retrieval_alone() -> None:
    """Pairs of unit features that agree, and the same images with each other's captions."""
    rng = np.random.default_rng(0)
    text_ND = rng.normal(size=(200, 16))
    image_ND = text_ND + 0.3 * rng.normal(size=text_ND.shape)
    image_ND, text_ND = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (image_ND, text_ND))
    order = rng.permutation(200)
    captions = [str(row) for row in range(200)]
    right, wrong = (measure_retrieval(image_ND, text, captions) for text in (text_ND, text_ND[order]))
    scores = [bootstrap_mean(np.einsum("nd,nd->n", image_ND, text).tolist()) for text in (text_ND, text_ND[order])]
    assert scores[0]["low"] > 0.9 > 0.1 > scores[1]["high"]
    for way in ("image_to_text", "text_to_image"):
        assert right[f"{way}_recall_at_1"] > 0.9 > 0.1 > wrong[f"{way}_recall_at_1"]
    # Captions do not enter the image features: distances stay the same.
    one, other = (Moments(16) for _ in range(2))
    one.add(image_ND)
    other.add(image_ND[order])
    assert frechet_distance(one, other) == pytest.approx(0, abs=1e-9)
