"""Exact repetition, against counting in order."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dataprep.filters import exchange
from dataprep.filters.exact_duplicates import ExactDuplicate, RepeatedCaption
from dataprep.filters.exchange import NONE
from tests.helpers.selection import OFF, decide, reasons, row


@pytest.mark.parametrize("part_bytes", [4000, 1 << 24])
def test_repeats_are_counted_in_order(part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PART_BYTES", part_bytes)
    rng = np.random.default_rng(1)
    values = rng.integers(0, 300, 2000)
    texts = [f"caption {value}" for value in values]
    columns = {"caption": texts, "sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts]}
    before_M = rng.random(2000) < 0.9
    for rule in (ExactDuplicate(), RepeatedCaption(3)):
        left_M, original_N = decide(rule, columns, before_M)
        seen: dict[int, list[int]] = {}
        for index, value in enumerate(values):
            stays = before_M[index] and len(seen.get(value, [])) < rule.most
            assert left_M[index] == stays
            repeats = before_M[index] and not stays
            assert original_N[index] == (seen[value][0] if repeats else NONE)
            if before_M[index]:
                seen.setdefault(value, []).append(index)


def test_digests_that_agree_in_their_first_half_are_not_equal() -> None:
    ends = ["a", "b", "a", "c", "b"]
    columns = {"sha256": ["0123456789abcdef" + end * 16 + "0" * 32 for end in ends]}
    left_M, original_N = decide(ExactDuplicate(), columns, shard_rows=2, group_rows=2)
    assert left_M.tolist() == [True, True, False, True, False]
    assert original_N.tolist() == [NONE, NONE, 0, NONE, 1]


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
