"""Rules over all rows together, each against the straightforward way that it must agree with."""

from __future__ import annotations

import hashlib
import tempfile
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_fakes import picture
from select_fakes import choose, reasons, row, stays

from dataprep.annotate import perceptual_hash, thumbnail
from dataprep.filters import near, neighbours, repeated
from dataprep.filters.hamming import HashIndex, plan_bands
from dataprep.filters.near import EmbeddingDuplicates, NearDuplicates, thumbnail_distance
from dataprep.filters.neighbours import plan_choices, with_neighbours
from dataprep.filters.repeated import exact_duplicates, repeated_captions
from dataprep.filters.similarity import TopSimilarity
from dataprep.rules import SelectConfig
from dataprep.spill import Spill

OFF = SelectConfig(min_side=0, near_duplicate_bits=None, exact_duplicates=False)


def hashes_with_near_ones(seed: int, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and thumbnails of which half are small changes of an earlier one, some of one that is one already."""
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
        if not (thumbnail_distance(*pairs) <= colour).any():
            kept.append(row_)
    keep = np.zeros(len(hash_N), bool)
    keep[kept] = True
    return keep


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 11, 16])
def test_near_duplicates_are_those_of_brute_force(distance, monkeypatch):
    # Small blocks and indexes, so that a thousand rows fill each, and full ones are left behind.
    small = {"BLOCK": 25, "WINDOW": 100, "NEWEST_ROWS": 30, "MIDDLE_ROWS": 60, "INDEX_ROWS": 240}
    for name, rows in small.items():
        monkeypatch.setattr(near, name, rows)
    monkeypatch.setattr(neighbours, "BUCKET_ROWS", 200)
    hash_N, thumbnail_NDC = hashes_with_near_ones(distance, 1000, distance + 2)
    left_M = stays(NearDuplicates(distance, 4.0), phash=hash_N, thumbnail=thumbnail_NDC)
    expected = brute_force(hash_N, thumbnail_NDC, distance, 4.0)
    assert 0.5 < expected.mean() < 0.98
    np.testing.assert_array_equal(left_M, expected)


def test_rows_that_went_before_do_not_count(monkeypatch):
    monkeypatch.setattr(near, "BLOCK", 16)
    hash_N, thumbnail_NDC = hashes_with_near_ones(3, 300, 6)
    before_M = np.random.default_rng(0).random(300) < 0.7
    left_M = stays(NearDuplicates(4, 4.0), before_M, phash=hash_N, thumbnail=thumbnail_NDC)
    assert not left_M[~before_M].any()
    np.testing.assert_array_equal(left_M[before_M], brute_force(hash_N[before_M], thumbnail_NDC[before_M], 4, 4.0))


def test_a_heap_of_one_hash_keeps_a_picture_of_each_colour():
    count = 5000
    colour_N = np.random.default_rng(0).integers(0, 3, count)
    thumbnail_NDC = np.zeros((count, 64, 3), np.uint8)
    thumbnail_NDC[np.arange(count), :, colour_N] = 200
    left_M = stays(NearDuplicates(4, 0.0), phash=np.full(count, 7, np.uint64), thumbnail=thumbnail_NDC)
    assert sorted(np.flatnonzero(left_M)) == sorted(int(np.argmax(colour_N == colour)) for colour in range(3))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 16), st.sampled_from([10, 1000, 1 << 16, 1 << 20]))
def test_an_index_finds_every_close_pair_and_no_other(seed, distance, rows):
    rng = np.random.default_rng(seed)
    if distance > 9 and rows > 1000:
        rows = 1000  # the same search, with fewer probes
    hash_N = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, distance, False)) for _ in range(40)]
    hash_Q = np.concatenate([hash_N ^ np.array(flips, np.uint64), hash_N[:3]])
    index = HashIndex(hash_N, distance, rows)
    pieces = list(index.pairs(hash_Q, np.ones(len(hash_Q), bool)))
    found = {pair for query, row_ in pieces for pair in zip(query.tolist(), row_.tolist(), strict=True)}
    difference_QN = np.bitwise_count(hash_Q[:, None] ^ hash_N)
    assert found == set(zip(*(axis.tolist() for axis in np.nonzero(difference_QN <= distance)), strict=True))


@pytest.mark.parametrize("distance", range(17))
def test_the_bands_leave_no_room_for_a_close_pair_beyond_them_all(distance):
    for rows in (1, 1 << 10, 1 << 16, 1 << 20):
        bands = plan_bands(distance, rows)
        radii = [int(np.bitwise_count(band.masks).max()) for band in bands]
        everything = any(radius == band.bits for radius, band in zip(radii, bands, strict=True))
        assert everything or sum(radius + 1 for radius in radii) > distance
        used = [bit for band in bands for bit in range(band.shift, band.shift + band.bits)]
        assert len(used) == len(set(used)) and max(used) < 64


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    distance=st.integers(0, 8),
    flips=st.integers(0, 12),
    planned=st.sampled_from([10, 10**5, 10**7]),
    bucket=st.sampled_from([40, 1 << 16]),
    block=st.sampled_from([30, 1 << 16]),
    large=st.sampled_from([2, 32]),
)
def test_who_has_a_neighbour_is_what_comparing_all_says(seed, distance, flips, planned, bucket, block, large):
    rng = np.random.default_rng(seed)
    # A few clouds of like hashes, and hashes with nothing near; some equal ones.
    centre_N = rng.choice(rng.integers(0, 2**64, 100, dtype=np.uint64), 400)
    hash_N = centre_N.copy()
    for row_ in np.flatnonzero(rng.random(400) < 0.7):
        chosen = rng.choice(64, int(rng.integers(0, flips + 1)), False)
        hash_N[row_] ^= np.uint64(sum(1 << int(bit) for bit in chosen))
    left_M = rng.random(400) < 0.8
    difference_NN = np.bitwise_count(hash_N[:, None] ^ hash_N) <= distance
    expected = (difference_NN[:, left_M].sum(axis=1) > 1) & left_M
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder, Spill(folder) as spill:
        choices = plan_choices(max(1, distance), planned)
        patch.setattr(neighbours, "plan_choices", lambda *_: choices)
        for name, value in {"BUCKET_ROWS": bucket, "BLOCK": block, "LARGE": large}.items():
            patch.setattr(neighbours, name, value)
        spill.append("hash", hash_N)
        np.testing.assert_array_equal(with_neighbours(spill, "hash", left_M, distance), expected)


@pytest.mark.parametrize("distance", range(1, 11))
def test_a_close_pair_is_equal_in_some_choice(distance):
    for rows in (1, 10**5, 10**7, 10**10):
        choices = plan_choices(distance, rows)
        blocks = sorted({block.shift for choice in choices for block in choice})
        assert sum({block.shift: block.bits for choice in choices for block in choice}.values()) == 64
        # Whatever `distance` blocks the differing bits are in, all others make a choice.
        assert {frozenset(block.shift for block in choice) for choice in choices} == {
            frozenset(blocks) - set(hit) for hit in combinations(blocks, distance)
        }
        assert max(sum(block.bits for block in choice) for choice in choices) <= 36  # beside the index


def test_a_cloud_of_like_hashes_costs_about_its_size():
    # All differ in few bits, so that every choice has them side by side: compared all with all, minutes.
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 64, (60_000, 2)).astype(np.uint64)
    hash_N = (np.uint64(1) << bits[:, 0]) | (np.uint64(1) << bits[:, 1])
    hash_N[:30_000] |= rng.integers(0, 2**20, 30_000).astype(np.uint64) << np.uint64(44)
    with tempfile.TemporaryDirectory() as folder, Spill(folder) as spill:
        spill.append("hash", hash_N)
        near_N = with_neighbours(spill, "hash", np.ones(len(hash_N), bool), 6)
    assert near_N.mean() > 0.99


def pictured(index, image, **changes):
    return row(index, phash=perceptual_hash(image), thumbnail=thumbnail(image), **changes)


def test_near_duplicates_survive_resize_and_light_but_not_colour():
    image = picture(5, 120, 120)
    brighter = np.clip(image * 1.05, 0, 255).astype(np.uint8)
    other_colours = np.ascontiguousarray(image[..., ::-1])
    rows = [pictured(0, image), pictured(1, picture(5, 90, 90)), pictured(2, brighter), pictured(3, other_colours)]
    config = SelectConfig(near_duplicate_bits=16, near_duplicate_colour=8.0)
    assert reasons(rows, config)[:2] == [None, "near_duplicate"]
    assert reasons(rows, config)[3] is None


def test_a_chain_of_near_duplicates_keeps_what_is_far_from_every_kept_one():
    thumb = bytes([100] * 192)
    rows = [row(index, phash=(1 << index * 4) - 1, thumbnail=thumb) for index in range(3)]  # 0, 4 and 8 bits from 0
    assert reasons(rows, SelectConfig(near_duplicate_bits=4)) == [None, "near_duplicate", None]


@pytest.mark.parametrize("bucket_rows", [10, 1 << 16])
def test_repeats_are_counted_in_order(bucket_rows, monkeypatch):
    monkeypatch.setattr(repeated, "BUCKET_ROWS", bucket_rows)
    monkeypatch.setattr(repeated, "BLOCK", 64)
    rng = np.random.default_rng(1)
    values = rng.integers(0, 300, 2000)
    digests = np.frombuffer(b"".join(hashlib.md5(bytes([v % 256, v // 256])).digest() for v in values), np.uint8)
    before_M = rng.random(2000) < 0.9
    for rule in (exact_duplicates(), repeated_captions(3)):
        left_M = stays(rule, before_M, **{rule.name: digests.reshape(-1, 16)})
        seen: dict[int, int] = {}
        for index, value in enumerate(values):
            seen[value] = seen.get(value, 0) + int(before_M[index])
            assert left_M[index] == (before_M[index] and seen[value] <= rule.most)


def test_repeated_captions_and_pairs():
    captions = ["A red  cat", "a red cat ", "a blue cat", "a red cat"]
    rows = [row(index, caption=caption) for index, caption in enumerate(captions)]
    twice = OFF.model_copy(update={"max_caption_repeats": 2})
    assert reasons(rows, twice) == [None, None, None, "repeated_caption"]
    pairs = OFF.model_copy(update={"duplicate_pairs": True})
    rows = [row(index, caption=caption) for index, caption in enumerate(["ab", "b", "ab", "ab"])]
    urls = {"url": ["http://x", "http://xa", "http://x", "http://y"]}
    assert reasons(rows, pairs.model_copy(update={"min_caption_chars": 0}), None, urls) == [
        *(None, None, "duplicate_pair", None)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, 0.25, float("nan")])), min_size=1),
    st.floats(0.01, 1),
)
def test_the_top_fraction_is_that_of_a_sort(values, fraction):
    value_N = np.array(values)
    left_M = stays(TopSimilarity(fraction), similarity=value_N)
    known = -np.sort(-value_N[~np.isnan(value_N)])
    if len(known):
        expected = value_N >= known[min(int(len(known) * fraction), len(known) - 1)]
    else:
        expected = np.zeros(len(values), bool)
    np.testing.assert_array_equal(left_M, expected)


def test_near_duplicates_by_embedding_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(near, "FEATURE_ROWS", 32)
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


def test_embedding_duplicates_read_the_scores(tmp_path):
    import pyarrow as pa

    vectors = [np.eye(4, dtype="<f2")[index].tobytes() for index in (0, 1, 0)]
    scores = {"clip_similarity": [1.0] * 3, "clip_embedding": pa.array(vectors, pa.binary(8))}
    config = OFF.model_copy(update={"near_duplicate_cosine": 0.9})
    written, _ = choose([[row(0), row(1), row(2)]], config, [scores])
    assert written[0]["keep"].to_pylist() == [True, True, False]


@pytest.mark.parametrize("count", [1, 5])
def test_rows_are_dealt_in_their_order(tmp_path, count):
    values = np.random.default_rng(0).integers(0, 100, (300, 2), dtype=np.uint16)
    left_M = np.random.default_rng(1).random(300) < 0.7
    with Spill(tmp_path) as spill:
        spill.append("pairs", values)
        dealt = spill.deal("pairs", left_M, lambda value_B: value_B[:, 0] % count, count, 64)
        buckets = [
            [(int(p), *v.tolist()) for some, value in bucket for p, v in zip(some, value, strict=True)]
            for bucket in dealt
        ]
    expected = [(row_, *values[row_].tolist()) for row_ in np.flatnonzero(left_M)]
    assert buckets == [[row_ for row_ in expected if row_[1] % count == bucket] for bucket in range(count)]


def test_a_spilled_column_gives_back_what_it_took(tmp_path):
    values = np.arange(60, dtype=np.int32).reshape(30, 2)
    with Spill(tmp_path) as spill:
        for start in range(0, 30, 7):
            spill.append("pairs", values[start : start + 7])
        np.testing.assert_array_equal(spill.read("pairs", 3, 99), values[3:])
        for index in ([5], [29, 0, 29, 3], [4, 5, 6, 5]):
            np.testing.assert_array_equal(spill.take("pairs", np.array(index)), values[index])
        with pytest.raises(ValueError, match="where the column is int32"):
            spill.append("pairs", values.astype(np.int64))
