"""Filters on how well caption and picture agree, by CLIP."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataprep.filters.base import column


class MinSimilarity:
    """Keeps pairs with a CLIP similarity of at least ``least``; a pair without a score goes."""

    name = "min_similarity"

    def __init__(self, least: float) -> None:
        self.least = least

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return column(rows, "clip_similarity") >= self.least, f"CLIP similarity below {self.least:g}"


class TopSimilarity:
    """Keeps the ``fraction`` of the pairs with the highest CLIP similarity, ties with the last of them too.

    DataComp's clip_score rule: at or above the value at the sorted index, over the pairs that earlier filters left.
    """

    name = "top_similarity"

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        similarity_N = column(rows, "clip_similarity")
        scored = np.sort(similarity_N[~np.isnan(similarity_N)])[::-1]
        if not len(scored):
            return np.zeros(len(similarity_N), dtype=bool), "no CLIP similarity"
        threshold = scored[min(int(len(scored) * self.fraction), len(scored) - 1)]
        return similarity_N >= threshold, f"CLIP similarity not in the top {self.fraction:.0%}"
