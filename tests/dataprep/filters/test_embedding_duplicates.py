"""Near duplicates by CLIP features, against comparing all pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dataprep.filters import embedding_duplicates, exchange
from dataprep.filters.embedding_duplicates import (
    ALL_PAIRS,
    SAMPLE,
    EmbeddingDuplicates,
    LinkVectors,
    count_clusters,
)
from dataprep.filters.exchange import NONE
from tests.helpers.selection import OFF, choose, decide, row


def features_with_near_ones(count: int, dim: int, noise: float) -> np.ndarray:
    """Float16 features (N, D); every second is a small change of an earlier one, which may be a change itself."""
    rng = np.random.default_rng(2)
    feature_ND = rng.normal(size=(count, dim))
    for later in range(1, count, 2):
        feature_ND[later] = feature_ND[rng.integers(0, later)] + noise * rng.normal(size=dim)
    return (feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True)).astype("<f2")


def brute_force(feature_ND: np.ndarray, cosine: float) -> np.ndarray:
    """Returns for each row, one after the other, the first kept row that it is alike to, or `NONE`."""
    wide_ND = feature_ND.astype(np.float64)
    wide_ND /= np.linalg.norm(wide_ND, axis=1, keepdims=True)
    kept: list[int] = []
    original_N = np.full(len(wide_ND), NONE)
    for row_ in range(len(wide_ND)):
        alike = np.flatnonzero(wide_ND[kept] @ wide_ND[row_] >= cosine)
        if len(alike):
            original_N[row_] = kept[alike[0]]
        else:
            kept.append(row_)
    return original_N


def decide_features(rule: EmbeddingDuplicates, feature_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vectors = pa.array([feature.tobytes() for feature in feature_ND], pa.binary(2 * feature_ND.shape[1]))
    return decide(rule, {}, scores={"clip_embedding": vectors})


@pytest.mark.parametrize(("clusters", "probes"), [(1, 1), (None, 4), (20, 20)])
def test_with_all_clusters_duplicates_are_those_of_brute_force(
    clusters: int | None, probes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_duplicates, "FEATURE_ROWS", 32)
    monkeypatch.setattr(exchange, "PART_BYTES", 5000)
    feature_ND = features_with_near_ones(400, 24, 0.12)
    expected_N = brute_force(feature_ND, 0.97)
    assert 200 < (expected_N == NONE).sum() < 390
    left_M, original_N = decide_features(EmbeddingDuplicates(0.97, probes, clusters), feature_ND)
    np.testing.assert_array_equal(left_M, expected_N == NONE)
    np.testing.assert_array_equal(original_N, expected_N)


def test_parts_larger_than_memory_are_compared_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PART_BYTES", 5000)
    monkeypatch.setattr(exchange, "MAX_PARTS", 3)
    feature_ND = features_with_near_ones(400, 24, 0.12)
    sizes, link = list[int](), LinkVectors._link

    def note(self: LinkVectors, vector_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(vector_N.nbytes)
        return link(self, vector_N)

    monkeypatch.setattr(LinkVectors, "_link", note)
    _, original_N = decide_features(EmbeddingDuplicates(0.97, 20, 20), feature_ND)
    np.testing.assert_array_equal(original_N, brute_force(feature_ND, 0.97))
    assert max(sizes) < sum(sizes) / 5  # of 3 parts


def test_more_probes_find_more_duplicates_and_each_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PART_BYTES", 50_000)
    feature_ND = features_with_near_ones(3000, 64, 0.65)
    dropped = brute_force(feature_ND, 0.8) != NONE
    recalls = []
    for probes in (1, 2, 8):
        left_M, original_N = decide_features(EmbeddingDuplicates(0.8, probes, 100), feature_ND)
        gone_K = np.flatnonzero(~left_M)
        wide_ND = feature_ND.astype(np.float64)
        wide_ND /= np.linalg.norm(wide_ND, axis=1, keepdims=True)
        cosine_K = (wide_ND[gone_K] * wide_ND[original_N[gone_K]]).sum(axis=1)
        assert (cosine_K >= 0.8 - 1e-5).all() and (original_N[gone_K] < gone_K).all()
        recalls.append((~left_M & dropped).sum() / dropped.sum())
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.97


def test_verdicts_do_not_depend_on_how_rows_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    feature_ND = features_with_near_ones(2000, 48, 0.27)
    vectors = pa.array([feature.tobytes() for feature in feature_ND], pa.binary(96))
    found = []
    for part_bytes, group_rows in ((1 << 24, 2000), (30_000, 200), (7_000, 400)):
        monkeypatch.setattr(exchange, "PART_BYTES", part_bytes)
        rule = EmbeddingDuplicates(0.96, 2, 60)
        found.append(decide(rule, {}, scores={"clip_embedding": vectors}, shard_rows=50, group_rows=group_rows)[1])
    assert 500 < (found[0] != NONE).sum() < 1000
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_rows_that_are_equal_or_zero() -> None:
    feature_ND = np.zeros((6, 8), "<f2")
    feature_ND[[1, 3, 5], 2] = 1
    left_M, original_N = decide_features(EmbeddingDuplicates(0.9), feature_ND)
    assert left_M.tolist() == [True, True, True, False, True, False]  # a zero vector has no direction
    assert original_N.tolist() == [NONE, NONE, NONE, 1, NONE, 1]


def test_the_number_of_clusters() -> None:
    assert count_clusters(ALL_PAIRS, 4, None) == 1
    assert count_clusters(10**6, 4, None) == 1871
    assert count_clusters(10**12, 4, None) == SAMPLE
    assert count_clusters(10**6, 4, 7) == 7 and count_clusters(3, 4, 7) == 3


def test_embedding_duplicates_read_the_scores() -> None:
    vectors = [np.eye(4, dtype="<f2")[index].tobytes() for index in (0, 1, 0)]
    scores = {"clip_similarity": [1.0] * 3, "clip_embedding": pa.array(vectors, pa.binary(8))}
    config = OFF.model_copy(update={"near_duplicate_cosine": 0.9})
    written, _ = choose([[row(0), row(1), row(2)]], config, [scores])
    assert written[0]["keep"].to_pylist() == [True, True, False]
    assert written[0]["duplicate_of"].to_pylist() == [None, None, "000000000"]
