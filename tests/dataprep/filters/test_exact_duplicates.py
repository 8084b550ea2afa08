"""Exact repetition, against counting in order."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dataprep.filters import exact_duplicates as exact_duplicates_module
from dataprep.filters.exact_duplicates import ExactDuplicate, RepeatedCaption
from tests.helpers.selection import OFF, reasons, row, stays


@pytest.mark.parametrize("bucket_rows", [10, 1 << 16])
def test_repeats_are_counted_in_order(bucket_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_duplicates_module, "PARTITION_ROWS", bucket_rows)
    monkeypatch.setattr(exact_duplicates_module, "BLOCK", 64)
    rng = np.random.default_rng(1)
    values = rng.integers(0, 300, 2000)
    digests = np.frombuffer(b"".join(hashlib.md5(bytes([v % 256, v // 256])).digest() for v in values), np.uint8)
    before_M = rng.random(2000) < 0.9
    for rule in (ExactDuplicate(), RepeatedCaption(3)):
        left_M = stays(rule, before_M, **{rule.digest_column: digests.reshape(-1, 16)})
        seen: dict[int, int] = {}
        for index, value in enumerate(values):
            seen[value] = seen.get(value, 0) + int(before_M[index])
            assert left_M[index] == (before_M[index] and seen[value] <= rule.most)


def test_repeated_captions_and_pairs() -> None:
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
