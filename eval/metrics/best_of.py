"""Gain from picking the best of several candidates by CLIP.

Shape legend: N prompts, K candidates of each.
"""

from __future__ import annotations

from collections import defaultdict
from math import comb
from typing import Any

import numpy as np

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.intervals import bootstrap_mean
from eval.metrics.samples_table import JudgedSample


class BestOf(Metric):
    """CLIP score and composition accuracy of the best of n candidates, for n = 1, 2, 4 ... up to those sampled."""

    title = "Best of N"
    description = "Expected quality if CLIP picks one of N images."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Key best_of: the rows of `tabulate_best_of`; accuracy is None unless every prompt has a claim."""
        by_prompt: dict[tuple[str, int], list[JudgedSample]] = defaultdict(list)
        for sample in judged.samples:
            by_prompt[sample.prompt, sample.seed].append(sample)
        if not by_prompt:
            return {"best_of": []}
        count = min(map(len, by_prompt.values()))
        grid = [sorted(samples, key=lambda sample: sample.index)[:count] for samples in by_prompt.values()]
        scores_NK = np.asarray([[sample.clip_score for sample in row] for row in grid], np.float64)
        checks = [[sample.checks for sample in row] for row in grid]
        correct_NK = None
        if all(found for row in checks for found in row):
            correct_NK = np.asarray([[found["all"] for found in row if found] for row in checks])
        return {"best_of": tabulate_best_of(scores_NK, correct_NK)}


def expect_best_of(scores_NK: np.ndarray, values_NK: np.ndarray, picked: int) -> np.ndarray:
    """Returns (N,): the value of the candidate with the highest score, expected over all choices of ``picked`` of K.

    The candidate of rank r from below (1 to K) is the best of a random choice of n with probability
    C(r - 1, n - 1) / C(K, n). Raises ValueError for ``picked`` outside of 1 to K.
    """
    count = scores_NK.shape[1]
    if not 1 <= picked <= count:
        raise ValueError(f"the best of {picked} among {count} candidates; take 1 to {count}")
    weight_K = np.asarray([comb(rank, picked - 1) / comb(count, picked) for rank in range(count)])
    # A stable sort of the reverse: of equal scores the first candidate is the best, as in argmax.
    order_NK = count - 1 - np.argsort(scores_NK[:, ::-1], axis=1, kind="stable")
    return np.asarray(np.take_along_axis(values_NK.astype(np.float64), order_NK, axis=1) @ weight_K)


def tabulate_best_of(scores_NK: np.ndarray, correct_NK: np.ndarray | None, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows for n = 1, 2, 4 ... candidates: n, clip_score, accuracy (of bool ``correct_NK``), with intervals."""
    count = scores_NK.shape[1]
    rows = []
    for picked in sorted({*(2**power for power in range(10) if 2**power <= count), count}):
        row: dict[str, Any] = {"n": picked}
        row["clip_score"] = bootstrap_mean(list(expect_best_of(scores_NK, scores_NK, picked)), seed=seed)
        correct = None if correct_NK is None else list(expect_best_of(scores_NK, correct_NK, picked))
        row["accuracy"] = bootstrap_mean(correct, seed=seed) if correct else None
        rows.append(row)
    return rows
