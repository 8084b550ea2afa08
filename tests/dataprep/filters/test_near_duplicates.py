"""Near-duplicate filters against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dataprep.annotate import compute_thumbnail
from dataprep.filters import exchange, hash_neighbours, near_duplicates
from dataprep.filters.config import SelectConfig
from dataprep.filters.exchange import NONE
from dataprep.filters.hash_neighbours import link_hashes
from dataprep.filters.near_duplicates import NearDuplicates, measure_thumbnail_distance
from dataprep.images.perceptual_hash import compute_perceptual_hash
from tests.helpers.images import picture
from tests.helpers.selection import decide, reasons, row


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
    """Returns for each row, one after the other, the first kept row that it is alike to, or `NONE`."""
    kept: list[int] = []
    original_N = np.full(len(hash_N), NONE)
    for row_ in range(len(hash_N)):
        before = [other for other in kept if int(hash_N[other] ^ hash_N[row_]).bit_count() <= distance]
        pairs = thumbnail_NDC[[row_] * len(before)], thumbnail_NDC[before]
        alike = np.flatnonzero(measure_thumbnail_distance(*pairs) <= colour)
        if len(alike):
            original_N[row_] = before[alike[0]]
        else:
            kept.append(row_)
    return original_N


def decide_near(
    rule: NearDuplicates, hash_N: np.ndarray, thumbnail_NDC: np.ndarray, before_M: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Lets the filter decide; see `tests.helpers.selection.decide`."""
    columns = {"phash": hash_N, "thumbnail": [thumbnail.tobytes() for thumbnail in thumbnail_NDC]}
    return decide(rule, columns, before_M)


@pytest.mark.parametrize("part_bytes", [2000, 1 << 24])
@pytest.mark.parametrize("distance", [0, 1, 3, 6, 11, 16])
def test_near_duplicates_are_those_of_brute_force(
    distance: int, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small blocks and indexes, so that a thousand rows fill each, and full ones are left behind.
    small = {"BLOCK": 25, "WINDOW": 100, "SMALL_ROWS": 30, "MEDIUM_ROWS": 60, "LARGE_ROWS": 240}
    for name, rows in small.items():
        monkeypatch.setattr(near_duplicates, name, rows)
    monkeypatch.setattr(exchange, "PART_BYTES", part_bytes)
    hash_N, thumbnail_NDC = hashes_with_near_ones(distance, 1000, distance + 2)
    left_M, original_N = decide_near(NearDuplicates(distance, 4.0), hash_N, thumbnail_NDC)
    expected_N = brute_force(hash_N, thumbnail_NDC, distance, 4.0)
    assert 0.5 < (expected_N == NONE).mean() < 0.98
    np.testing.assert_array_equal(left_M, expected_N == NONE)
    np.testing.assert_array_equal(original_N, expected_N)


def test_parts_larger_than_memory_are_linked_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PART_BYTES", 2000)
    monkeypatch.setattr(exchange, "MAX_PARTS", 10)  # fewer than the exchange of hashes has prefixes
    hash_N, thumbnail_NDC = hashes_with_near_ones(6, 1000, 8)
    sizes: list[int] = []

    def note(hash_M: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(hash_M.nbytes)
        return link_hashes(hash_M, *rest)

    monkeypatch.setattr(hash_neighbours, "link_hashes", note)
    left_M, original_N = decide_near(NearDuplicates(6, 4.0), hash_N, thumbnail_NDC)
    np.testing.assert_array_equal(original_N, brute_force(hash_N, thumbnail_NDC, 6, 4.0))
    np.testing.assert_array_equal(left_M, original_N == NONE)
    assert max(sizes) < 2 * 2000 < len(hash_N) * 8


def test_dropped_rows_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", 16)
    hash_N, thumbnail_NDC = hashes_with_near_ones(3, 300, 6)
    before_M = np.random.default_rng(0).random(300) < 0.7
    left_M, _ = decide_near(NearDuplicates(4, 4.0), hash_N, thumbnail_NDC, before_M)
    assert not left_M[~before_M].any()
    expected_M = brute_force(hash_N[before_M], thumbnail_NDC[before_M], 4, 4.0) == NONE
    np.testing.assert_array_equal(left_M[before_M], expected_M)


def test_many_rows_of_one_hash_keep_one_image_per_colour() -> None:
    count = 5000
    colour_N = np.random.default_rng(0).integers(0, 3, count)
    thumbnail_NDC = np.zeros((count, 64, 3), np.uint8)
    thumbnail_NDC[np.arange(count), :, colour_N] = 200
    left_M, _ = decide_near(NearDuplicates(4, 0.0), np.full(count, 7, np.uint64), thumbnail_NDC)
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
