"""Counts agree with their nouns."""

from __future__ import annotations

from dataprep.io.wording import count_of


def test_counts_agree_with_their_nouns() -> None:
    assert [count_of(number, "file") for number in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]
    assert count_of(2, "copy", "copies") == "2 copies" and count_of(1, "copy", "copies") == "1 copy"
