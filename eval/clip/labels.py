"""Zero-shot labels: which of a question's labels suits an image best, by the CLIP that scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataprep.io.scorer_heads import LABEL_PREFIX

if TYPE_CHECKING:
    from eval.clip.scorer import ClipScorer


class LabelHead:
    """Gives each image the label with the highest cosine; ``name`` is that of its column.

    It always gives one of the labels, also to an image that none of them describes.
    """

    type = pa.string()

    def __init__(self, question: str, labels: Sequence[str], scorer: ClipScorer) -> None:
        self.name = LABEL_PREFIX + question
        self.labels = np.array(labels, object)
        self.text_LD = scorer.text_features(labels)

    def __call__(self, feature_ND: np.ndarray) -> np.ndarray:
        """Returns labels (N,) for float32 unit vectors (N, D)."""
        return self.labels[(feature_ND @ self.text_LD.T).argmax(axis=1)]


def make_label_heads(questions: Mapping[str, Sequence[str]], scorer: ClipScorer) -> list[LabelHead]:
    """Makes a head for each question of ``score.labels``."""
    return [LabelHead(question, labels, scorer) for question, labels in questions.items()]
