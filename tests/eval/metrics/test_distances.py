"""Distances against independent float64 computations, for any split of the rows, and on degraded sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from dataprep.synthetic.grammar import Claim, sample_claim
from dataprep.synthetic.renderer import draw_scene
from eval.metrics.distances import (
    compare_neighbourhoods,
    compare_sets,
    describe_distances,
    frechet_distance,
    kernel_distance,
    unbiased_mmd2,
)
from eval.metrics.feature_models import FeatureSpace
from eval.metrics.feature_sets import FeatureSet, Moments

SPACE = FeatureSpace("clip", "fd_clip", "CLIP", "0" * 16, 64, True)


def features(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) / dim**0.5 + shift).astype(np.float32)


def collected(parts: Sequence[np.ndarray], subsample: int = 100) -> FeatureSet:
    """A set filled shard by shard, each shard by a worker of its own, merged from the last to the first."""
    whole, number = FeatureSet(parts[0].shape[1], subsample), sum(len(part) for part in parts)
    for part in reversed(parts):
        worker = FeatureSet(part.shape[1], subsample)
        number -= len(part)
        worker.add([str(number + row) for row in range(len(part))], part)
        whole.merge(worker)
    return whole


def moments(features_ND: np.ndarray) -> Moments:
    found = Moments(features_ND.shape[1])
    found.add(features_ND)
    return found


@pytest.mark.parametrize(("count", "dim", "scale"), [(400, 16, 1.0), (900, 48, 0.02), (300, 8, 15.0)])
def test_frechet_distance_is_that_of_an_independent_computation(count: int, dim: int, scale: float) -> None:
    one, other = scale * features(count, dim, 1), scale * features(count + 50, dim, 2, 0.3)
    a, b = one.astype(np.float64), other.astype(np.float64)
    root = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root.real
    )
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(expected, rel=1e-6)


def test_torch_fidelity_finds_the_same() -> None:
    """The library that publishes FIDs, on the same features: its Frechet distance and its MMD."""
    from dataprep.io.model_imports import declare_torchvision_operators

    declare_torchvision_operators()
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_kid import polynomial_mmd

    one, other = features(300, 24, 1), features(300, 24, 2, 0.3)
    pair = [
        {"mu": part.astype(float).mean(0), "sigma": np.cov(part.astype(float), rowvar=False)} for part in (one, other)
    ]
    theirs = fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(theirs, rel=1e-6)
    doubles = (part.astype(float) for part in (one, other))
    assert unbiased_mmd2(one, other) == pytest.approx(polynomial_mmd(*doubles, degree=3, gamma=None, coef0=1), rel=1e-6)


def test_frechet_distance_of_known_gaussians() -> None:
    """Of one-dimensional sets it is (m1 - m2)^2 + (s1 - s2)^2."""
    one, other = np.asarray([[1.0], [3.0]]), np.asarray([[5.0], [13.0]])
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(49 + (32**0.5 - 2**0.5) ** 2, rel=1e-12)


def test_a_set_smaller_than_its_dimension_is_at_no_distance_from_itself() -> None:
    few = features(20, 64, 3)
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-9)


def test_kid_is_that_of_an_independent_computation() -> None:
    one, other = features(40, 12, 4), features(30, 12, 5, 0.2)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 12 + 1) ** 3

    within = sum(kernel(x, y) for i, x in enumerate(one) for j, y in enumerate(one) if i != j) / (40 * 39)
    others = sum(kernel(x, y) for i, x in enumerate(other) for j, y in enumerate(other) if i != j) / (30 * 29)
    across = sum(kernel(x, y) for x in one for y in other) / (40 * 30)
    assert unbiased_mmd2(one, other) == pytest.approx(within + others - 2 * across, rel=1e-6)
    mean, spread = kernel_distance(one, other, subsets=200, size=25)
    assert mean == pytest.approx(unbiased_mmd2(one, other), abs=4 * spread / 200**0.5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 99))
def test_a_set_is_the_same_for_any_split_into_shards(sizes: list[int], seed: int) -> None:
    """Equal to the last bit: sums of integers have no order."""
    rows = features(sum(sizes) + 2, 6, seed)
    cuts = np.cumsum(sizes)
    whole, split = collected([rows], 20), collected(np.split(rows, cuts), 20)
    assert len(whole) == len(split) == len(rows)
    assert np.array_equal(whole.moments.covariance(), split.moments.covariance())
    assert np.array_equal(whole.moments.mean(), split.moments.mean())
    assert np.array_equal(whole.sample.taken(), split.sample.taken())
    reference = collected([features(50, 6, 7)], 20)
    assert compare_sets(reference, whole) == compare_sets(reference, split)


def test_sets_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="no unbiased MMD"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="no 5 neighbours"):
        compare_neighbourhoods(np.zeros((5, 3)), np.zeros((50, 3)))
    found = compare_sets(collected([features(3, 4, 1)]), collected([features(3, 4, 2)]))
    assert found["fd"] is not None
    assert found["precision"] is None
    assert compare_sets(FeatureSet(4), FeatureSet(4))["fd"] is None


def test_neighbourhoods_are_those_of_a_plain_loop() -> None:
    real, fake = features(30, 5, 1).astype(np.float64), features(25, 5, 2, 0.4).astype(np.float64)
    real_ball = [sorted(np.linalg.norm(real - x, axis=1))[3] for x in real]
    fake_ball = [sorted(np.linalg.norm(fake - x, axis=1))[3] for x in fake]
    inside = [[np.linalg.norm(x - y) <= ball for x, ball in zip(real, real_ball, strict=True)] for y in fake]
    recalled = [any(np.linalg.norm(x - y) <= ball for y, ball in zip(fake, fake_ball, strict=True)) for x in real]
    expected = {
        "precision": np.mean([any(row) for row in inside]),
        "recall": np.mean(recalled),
        "density": np.mean([sum(row) / 3 for row in inside]),
        "coverage": np.mean([any(row[i] for row in inside) for i in range(30)]),
    }
    assert compare_neighbourhoods(real, fake, nearest=3) == pytest.approx(expected)


def test_description_of_a_missing_set() -> None:
    one = collected([features(30, 5, 1)])
    found = describe_distances(None, one, SPACE)
    assert found["fd"] is None
    assert found["note"] == "one of the sets has fewer than two images"


# ---------------------------------------------------------------------------------------------- degraded sets


def drawings(count: int, seed: int, keep: Callable[[Claim], bool] = lambda claim: True) -> list[np.ndarray]:
    rng, found = np.random.default_rng(seed), list[np.ndarray]()
    while len(found) < count:
        claim = sample_claim(rng)
        if keep(claim):
            found.append(draw_scene(claim, rng, 16))
    return found


def as_features(images: list[np.ndarray]) -> FeatureSet:
    """A simple feature model: colours at 8x8, and edge strength, which blur and noise change."""
    rows = []
    for image in images:
        small = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        edges = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
        rows.append(np.concatenate([small.ravel(), cv2.resize(edges, (4, 4), interpolation=cv2.INTER_AREA).ravel()]))
    found = FeatureSet(len(rows[0]), 400)
    found.add([str(index) for index in range(len(rows))], np.stack(rows))
    return found


def measure(real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    """`compare_sets` of sets that are large enough for every distance."""
    return {name: value for name, value in compare_sets(real, fake).items() if value is not None}


def test_distances_react_the_right_way() -> None:
    """Identical sets are at zero, fresh ones near; blur, noise and dropped modes are farther, the more the farther."""
    rng = np.random.default_rng(0)
    images = drawings(300, 1)
    real, fresh = as_features(images), as_features(drawings(300, 2))
    same = measure(real, real)
    assert same["fd"] == pytest.approx(0, abs=1e-6)
    assert same["kid"] <= 0  # the unbiased estimate leaves an image's kernel with itself out on one side only
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)

    near = measure(real, fresh)
    blurred = [measure(real, as_features([cv2.GaussianBlur(i, (0, 0), s) for i in images])) for s in (1.0, 3.0)]
    noisy = [
        measure(real, as_features([np.clip(i + rng.normal(0, s, i.shape), 0, 255).astype("u1") for i in images]))
        for s in (20.0, 60.0)
    ]
    for mild, strong in (blurred, noisy):
        for name in ("fd", "kid"):
            assert same[name] < mild[name] < strong[name], name
        assert strong["fd"] > near["fd"]
        assert strong["coverage"] < 0.7 < 0.9 < near["coverage"]

    dropped = measure(real, as_features(drawings(300, 3, lambda claim: claim.first.colour == "red")))
    assert dropped["fd"] > near["fd"]
    assert dropped["kid"] > near["kid"]
    assert dropped["coverage"] < near["coverage"]
    assert dropped["precision"] > 0.5  # the remaining images are right
