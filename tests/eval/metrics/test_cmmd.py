"""CMMD against a computation of its own in float64, pair by pair, and where it sees what KID does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.metrics.cmmd import SCALE, gaussian_mmd2, measure_cmmd
from eval.metrics.distances import unbiased_mmd2
from eval.metrics.feature_models import FeatureSpace
from eval.metrics.feature_sets import FeatureSet

UNIT = FeatureSpace("clip", "fd_clip", "CLIP", "openai", 224, True)
OTHER = FeatureSpace("dino", "fd_dino", "DINOv2", "0" * 16, 224, False)


def directions(count: int, dim: int, seed: int, spread: float) -> np.ndarray:
    """Unit vectors around one direction; float32 as features are."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=dim)
    rows = centre / np.linalg.norm(centre) + spread * rng.normal(size=(count, dim)) / dim**0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def filled(rows: np.ndarray) -> FeatureSet:
    found = FeatureSet(rows.shape[1], 10_000)
    found.add([str(number) for number in range(len(rows))], rows)
    return found


def kernel_mean(one: np.ndarray, other: np.ndarray) -> float:
    total = math.fsum(
        math.exp(-math.fsum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) / 200)
        for a in one
        for b in other
    )
    return total / (len(one) * len(other))


@pytest.mark.parametrize(("count", "others", "dim", "spread"), [(40, 25, 12, 0.5), (17, 60, 5, 3.0)])
def test_cmmd_is_that_of_an_independent_computation(count: int, others: int, dim: int, spread: float) -> None:
    one, other = directions(count, dim, 1, spread), directions(others, dim, 2, 2 * spread)
    expected = 1000 * (kernel_mean(one, one) + kernel_mean(other, other) - 2 * kernel_mean(one, other))
    found = measure_cmmd(filled(one), filled(other), UNIT)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert expected > 1e-3


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = directions(50, 8, 1, 1.0), directions(41, 8, 2, 1.0)
    whole = gaussian_mmd2(one, other)
    monkeypatch.setattr("eval.metrics.cmmd.BLOCK_ROWS", 7)
    assert gaussian_mmd2(one, other) == pytest.approx(whole, rel=1e-9)
    assert gaussian_mmd2(one, one) == pytest.approx(0, abs=1e-15)


def test_cmmd_sees_a_difference_of_spread_alone() -> None:
    """Of two sets with one mean, KID's kernel on unit vectors takes 512 dimensions for one point."""
    rng = np.random.default_rng(0)
    rows = np.zeros((400, 512), np.float32)
    rows[:, 0] = 1
    narrow, wide = rows.copy(), rows.copy()
    narrow[:, 1] = 0.05 * rng.choice([-1, 1], 400)
    wide[:, 1] = 0.8 * rng.choice([-1, 1], 400)
    for part in (narrow, wide):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        part[:, 0] = np.sqrt(1 - 0.8**2) if part is wide else part[:, 0]
    wide[:, 0] = narrow[:, 0].mean()  # the means agree; lengths differ by what CLIP's never do, which the test needs
    scaled_kid = abs(unbiased_mmd2(narrow, wide)) / 3 * 512  # in units of the kernel's linear part
    assert scaled_kid < 0.01
    assert SCALE * gaussian_mmd2(narrow, wide) > 1e-3


def test_spaces_without_unit_length_have_none() -> None:
    rows = filled(directions(10, 4, 1, 1.0))
    assert measure_cmmd(rows, rows, OTHER) is None
    assert measure_cmmd(None, rows, UNIT) is None
    assert UNIT.cmmd_name == "cmmd_clip"
    with pytest.raises(ValueError, match="sets of 0 and 3 images have no MMD"):
        gaussian_mmd2(np.zeros((0, 2)), np.zeros((3, 2)))
