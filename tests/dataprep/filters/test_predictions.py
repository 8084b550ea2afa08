"""Filters on predictions of the list and of heads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.selection import LISTED, OFF, float32, reasons, row


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"drop_nsfw_labels": ("NSFW",)}, "nsfw_label"),
        ({"unsafe_below": 0.5}, "unsafe"),
        ({"watermark_below": 0.8}, "watermark"),
        ({"aesthetic_above": 7.0}, "aesthetic"),
        ({"min_aesthetic": 7.05}, "aesthetic"),
        ({"languages": ("en",), "language_from": "listed"}, "language"),
        ({"min_similarity": 0.28, "similarity": "listed_similarity_b32"}, "min_similarity"),
        ({"min_similarity": 0.28, "similarity": "listed_similarity_l14"}, "min_similarity"),
    ],
)
def test_filters_on_columns_of_the_list(config: dict[str, Any], reason: str) -> None:
    rows = [row(0), row(1), row(2)]
    null = None if reason == "nsfw_label" else reason  # a row without a number cannot pass; one without a label can
    assert reasons(rows, OFF.model_copy(update=config), None, LISTED) == [None, reason, null]


def test_a_head_is_preferred_to_the_list() -> None:
    heads = {"clip_similarity": float32([1, 1]), "nsfw": float32([0.9, 0.1]), "aesthetic": float32([1, 9])}
    listed = {"listed_unsafe": [0.0, 0.9], "listed_aesthetic": [9.0, 1.0]}
    for config in ({"unsafe_below": 0.5}, {"min_aesthetic": 5.0}):
        kept = reasons([row(0), row(1)], OFF.model_copy(update=config), heads, listed)
        assert [reason is None for reason in kept] == [False, True]
