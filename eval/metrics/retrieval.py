"""Retrieval by CLIP among validation pairs, and CLIP scores of true and of wrong pairs.

Shape legend: N pairs, T distinct captions, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.feature_sets import SAMPLE_SET, VALIDATION_SET
from eval.metrics.intervals import bootstrap_mean


class Retrieval(Metric):
    """Quality of the judging CLIP on the run's validation pairs, and its score of samples with wrong prompts."""

    title = "Retrieval"
    description = "How well the judging CLIP finds the other half of a validation pair."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Keys: retrieval, clip_score_validation of true pairs, clip_score_chance of samples with others' prompts."""
        if judged.features is None:
            return {"retrieval": None}
        pairs = judged.features.pairs
        found: dict[str, Any] = {"retrieval": None, "clip_score_validation": None, "clip_score_chance": None}
        if rows := pairs[VALIDATION_SET].taken() if VALIDATION_SET in pairs else []:
            images, texts, captions = (np.stack([row[part] for row in rows]) for part in range(3))
            found["retrieval"] = measure_retrieval(images, texts, captions.tolist())
            found["clip_score_validation"] = bootstrap_mean(np.einsum("nd,nd->n", images, texts).tolist())
        if len(rows := pairs[SAMPLE_SET].taken() if SAMPLE_SET in pairs else []) > 1:
            images, texts = (np.stack([row[part] for row in rows]) for part in range(2))
            found["clip_score_chance"] = float(np.einsum("nd,nd->n", images, np.roll(texts, 1, axis=0)).mean())
        return found


def measure_retrieval(image_ND: np.ndarray, text_ND: np.ndarray, captions: Sequence[str]) -> dict[str, float | int]:
    """Returns recall@1 and @5 of a CLIP among N pairs, both ways, and the same by chance.

    Features (N, D) are of unit length. A caption that several images share is right for each of them. Ties rank above
    the match, so constant features score zero.
    """
    count = len(captions)
    number = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
    own_N = np.asarray([number[caption] for caption in captions])
    first_T = np.unique(own_N, return_index=True)[1]
    similar_NT = image_ND @ text_ND[first_T].T
    found: dict[str, float | int] = {"n": count, "captions": len(number)}
    right_NT = own_N[:, None] == np.arange(len(number))
    text_rank_N = ((similar_NT >= similar_NT[np.arange(count), own_N][:, None]) & ~right_NT).sum(axis=1)
    best_T = np.where(right_NT, similar_NT, -np.inf).max(axis=0)
    image_rank_T = ((similar_NT >= best_T) & ~right_NT).sum(axis=0)
    for k in (1, 5):
        found[f"image_to_text_recall_at_{k}"] = float((text_rank_N < k).mean())
        found[f"text_to_image_recall_at_{k}"] = float((image_rank_T < k).mean())
        found[f"chance_at_{k}"] = min(1.0, k / len(number))
    return found
