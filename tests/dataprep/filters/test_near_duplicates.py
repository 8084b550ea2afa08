"""Near-duplicate filters against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataprep.annotate import compute_perceptual_hash, compute_thumbnail
from dataprep.filters import hash_neighbours, near_duplicates
from dataprep.filters.config import SelectConfig
from dataprep.filters.near_duplicates import EmbeddingDuplicates, NearDuplicates, measure_thumbnail_distance
from tests.helpers.images import picture
from tests.helpers.selection import OFF, choose, reasons, row, stays


def hashes_with_near_ones(seed: int, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and thumbnails; half are small changes of an earlier one, which may be a change itself."""
    rng = np.random.default_rng(seed)
    hash_N = rng.integers(0, 2**64, count, dtype=np.uint64)
    thumbnail_NDC = rng.integers(0, 256, (count, 64, 3), dtype=np.uint8)
    for later in np.flatnonzero(rng.random(count) < 0.5):
        earlier = rng.integers(0, later + 1)
        changed = rng.choice(64, rng.integers(0, most + 1), False)
        hash_N[later] = hash_N[earlier] ^ np.uint64(sum(1 << int(bit) for bit in changed))
        shake = rng.integers(-4, 5, (64, 3))
        thumbnail_NDC[later] = np.clip(thumbnail_NDC[earlier].astype(int) + shake, 0, 255)
    return hash_N, thumbnail_NDC


def brute_force(hash_N: np.ndarray, thumbnail_NDC: np.ndarray, distance: int, colour: float) -> np.ndarray:
    kept: list[int] = []
    for row_ in range(len(hash_N)):
        before = [other for other in kept if int(hash_N[other] ^ hash_N[row_]).bit_count() <= distance]
        pairs = thumbnail_NDC[[row_] * len(before)], thumbnail_NDC[before]
        if not (measure_thumbnail_distance(*pairs) <= colour).any():
            kept.append(row_)
    keep = np.zeros(len(hash_N), bool)
    keep[kept] = True
    return keep


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 11, 16])
def test_near_duplicates_are_those_of_brute_force(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small blocks and indexes, so that a thousand rows fill each, and full ones are left behind.
    small = {"BLOCK": 25, "WINDOW": 100, "SMALL_ROWS": 30, "MEDIUM_ROWS": 60, "LARGE_ROWS": 240}
    for name, rows in small.items():
        monkeypatch.setattr(near_duplicates, name, rows)
    monkeypatch.setattr(hash_neighbours, "PARTITION_ROWS", 200)
    hash_N, thumbnail_NDC = hashes_with_near_ones(distance, 1000, distance + 2)
    left_M = stays(NearDuplicates(distance, 4.0), phash=hash_N, thumbnail=thumbnail_NDC)
    expected = brute_force(hash_N, thumbnail_NDC, distance, 4.0)
    assert 0.5 < expected.mean() < 0.98
    np.testing.assert_array_equal(left_M, expected)


def test_dropped_rows_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", 16)
    hash_N, thumbnail_NDC = hashes_with_near_ones(3, 300, 6)
    before_M = np.random.default_rng(0).random(300) < 0.7
    left_M = stays(NearDuplicates(4, 4.0), before_M, phash=hash_N, thumbnail=thumbnail_NDC)
    assert not left_M[~before_M].any()
    np.testing.assert_array_equal(left_M[before_M], brute_force(hash_N[before_M], thumbnail_NDC[before_M], 4, 4.0))


def test_many_rows_of_one_hash_keep_one_image_per_colour() -> None:
    count = 5000
    colour_N = np.random.default_rng(0).integers(0, 3, count)
    thumbnail_NDC = np.zeros((count, 64, 3), np.uint8)
    thumbnail_NDC[np.arange(count), :, colour_N] = 200
    left_M = stays(NearDuplicates(4, 0.0), phash=np.full(count, 7, np.uint64), thumbnail=thumbnail_NDC)
    assert sorted(np.flatnonzero(left_M)) == sorted(int(np.argmax(colour_N == colour)) for colour in range(3))


def pictured(index: int, image: np.ndarray, **changes: Any) -> dict[str, Any]:
    return row(index, phash=compute_perceptual_hash(image), thumbnail=compute_thumbnail(image), **changes)


def test_near_duplicates_survive_resize_and_light_but_not_colour() -> None:
    image = picture(5, 120, 120)
    brighter = np.clip(image * 1.05, 0, 255).astype(np.uint8)
    other_colours = np.ascontiguousarray(image[..., ::-1])
    rows = [pictured(0, image), pictured(1, picture(5, 90, 90)), pictured(2, brighter), pictured(3, other_colours)]
    config = SelectConfig(near_duplicate_bits=16, near_duplicate_colour=8.0)
    assert reasons(rows, config)[:2] == [None, "near_duplicate"]
    assert reasons(rows, config)[3] is None


def test_a_chain_of_near_duplicates_keeps_what_is_far_from_every_kept_one() -> None:
    thumb = bytes([100] * 192)
    rows = [row(index, phash=(1 << index * 4) - 1, thumbnail=thumb) for index in range(3)]  # 0, 4 and 8 bits from 0
    assert reasons(rows, SelectConfig(near_duplicate_bits=4)) == [None, "near_duplicate", None]


def test_near_duplicates_by_embedding_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "FEATURE_ROWS", 32)
    rng = np.random.default_rng(2)
    feature_ND = rng.normal(size=(400, 24))
    for later in range(1, 400, 2):
        feature_ND[later] = feature_ND[rng.integers(0, later)] + 0.12 * rng.normal(size=24)
    feature_ND = (feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True)).astype("<f2")
    wide_ND = feature_ND.astype(np.float64)
    wide_ND /= np.linalg.norm(wide_ND, axis=1, keepdims=True)
    kept: list[int] = []
    for row_ in range(400):
        if not kept or (wide_ND[kept] @ wide_ND[row_]).max() < 0.97:
            kept.append(row_)
    assert 200 < len(kept) < 390
    left_M = stays(EmbeddingDuplicates(0.97), clip_embedding=feature_ND)
    assert np.flatnonzero(left_M).tolist() == kept


def test_embedding_duplicates_read_the_scores(tmp_path: Path) -> None:
    import pyarrow as pa

    vectors = [np.eye(4, dtype="<f2")[index].tobytes() for index in (0, 1, 0)]
    scores = {"clip_similarity": [1.0] * 3, "clip_embedding": pa.array(vectors, pa.binary(8))}
    config = OFF.model_copy(update={"near_duplicate_cosine": 0.9})
    written, _ = choose([[row(0), row(1), row(2)]], config, [scores])
    assert written[0]["keep"].to_pylist() == [True, True, False]
