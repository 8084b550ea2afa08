"""How sure a figure is: bootstrap and Wilson intervals, paired differences, retrieval recall, the best of N."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np
from scipy.stats import binomtest

DRAWS, LEVEL = 2000, 0.95


def bootstrap_mean(values: Sequence[float], draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Mean of ``values`` with its percentile-bootstrap interval (Efron 1979): value, low, high. Needs one value."""
    array_N = np.asarray(values, np.float64)
    rng = np.random.default_rng([seed, len(array_N)])
    means = [array_N[rng.integers(len(array_N), size=len(array_N))].mean() for _ in range(draws)]
    return {"value": float(array_N.mean())} | _interval(means)


def bootstrap_pairs(
    count: int, difference: Callable[[np.ndarray], float], draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """A difference between two runs on the same ``count`` prompts, with its interval: value, low, high.

    ``difference`` gives it for row numbers int64 (count,). The same prompts are drawn for both, so that what makes a
    prompt easy or hard for both does not count as doubt.
    """
    rng = np.random.default_rng([seed, count])
    values = [difference(rng.integers(count, size=count)) for _ in range(draws)]
    return {"value": difference(np.arange(count))} | _interval(values)


def _interval(values: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def wilson(right: int, count: int) -> dict[str, float]:
    """The 95% Wilson interval of a share: low, high."""
    interval = binomtest(right, count).proportion_ci(LEVEL, method="wilson")
    return {"low": float(interval.low), "high": float(interval.high)}


def retrieval(image_ND: np.ndarray, text_ND: np.ndarray, captions: Sequence[str]) -> dict[str, float | int]:
    """How well a CLIP finds the other half of a pair among ``n``: recall@1 and @5, both ways, and by chance.

    Rows are unit features of pairs. A caption that several pictures share is right for each of them. What is as alike
    as the right one counts as found before it: features that tell nothing apart find nothing.
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


def best_of(scores_NK: np.ndarray, values_NK: np.ndarray, picked: int) -> np.ndarray:
    """What the highest scored of ``picked`` candidates has of ``values``, expected over all choices of them: (N,).

    Of K candidates the one of rank r from below (1 to K) is the best of a random choice of n with probability
    C(r - 1, n - 1) / C(K, n).
    """
    count = scores_NK.shape[1]
    if not 1 <= picked <= count:
        raise ValueError(f"the best of {picked} among {count} candidates; take 1 to {count}")
    weight_K = np.asarray([comb(rank, picked - 1) / comb(count, picked) for rank in range(count)])
    # A stable sort of the reverse, so that of equal scores the first candidate is the best, as argmax has it.
    order_NK = count - 1 - np.argsort(scores_NK[:, ::-1], axis=1, kind="stable")
    return np.asarray(np.take_along_axis(values_NK.astype(np.float64), order_NK, axis=1) @ weight_K)


def best_of_table(scores_NK: np.ndarray, right_NK: np.ndarray | None, seed: int = 0) -> list[dict[str, Any]]:
    """A row for N = 1, 2, 4 ... candidates: n, clip_score and accuracy (of bool ``right_NK``), with low and high."""
    count = scores_NK.shape[1]
    rows = []
    for picked in sorted({*(2**power for power in range(10) if 2**power <= count), count}):
        row: dict[str, Any] = {"n": picked}
        row["clip_score"] = bootstrap_mean(list(best_of(scores_NK, scores_NK, picked)), seed=seed)
        right = None if right_NK is None else list(best_of(scores_NK, right_NK, picked))
        row["accuracy"] = bootstrap_mean(right, seed=seed) if right else None
        rows.append(row)
    return rows
