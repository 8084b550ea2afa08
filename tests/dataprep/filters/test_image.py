"""Row filters on images and captions, and their limits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.selection import OFF, choose, reasons, row


@pytest.mark.parametrize(
    ("changes", "config", "reason"),
    [
        ({"ok": False, "width": None, "height": None, "aspect": None, "phash": None}, {}, "downloaded"),
        ({"width": 63}, {"min_side": 64}, "min_side"),
        ({"aspect": 3.01}, {}, "max_aspect"),
        ({"width": 50}, {"min_area": 4001}, "area"),
        ({"width": 101}, {"max_area": 8000}, "area"),
        ({"bytes": 999}, {"min_bytes": 1000}, "file_size"),
        ({"bytes": 1001}, {"max_bytes": 1000}, "file_size"),
        ({"caption_chars": 4}, {}, "caption_chars"),
        ({"caption_chars": 1001}, {}, "caption_chars"),
        ({"caption_words": 1}, {}, "caption_words"),
        ({"caption_words": 257}, {}, "caption_words"),
        ({"caption": "两只 猫"}, {"words": "spaces", "min_caption_words": 3}, "caption_words"),
        ({"alpha_share": 0.49}, {}, "alpha_share"),
        ({"caption": "IMG_1234.jpg"}, {}, "boilerplate"),
        ({"language": "de"}, {"languages": ("en", "zh")}, "language"),
    ],
)
def test_each_filter_drops_its_rows(changes: dict[str, Any], config: dict[str, Any], reason: str) -> None:
    settings_ = OFF.model_copy(update=config)
    assert reasons([row(0), row(1, **changes), row(2)], settings_) == [None, reason, None]


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"width": 64}, {"min_side": 64}),
        ({"aspect": 3.0}, {}),
        ({"alpha_share": 0.5}, {}),
        ({"alpha_share": 0.7}, {"min_alpha_share": 0.7}),  # not a float32
        ({"caption_chars": 5}, {}),
        ({"width": 50}, {"min_area": 4000, "max_area": 4000}),
        ({"bytes": 10}, {"min_bytes": 10, "max_bytes": 10}),
    ],
)
def test_limits_are_inclusive(changes: dict[str, Any], config: dict[str, Any]) -> None:
    assert reasons([row(0, **changes)], OFF.model_copy(update=config)) == [None]


def test_the_fetched_size_is_preferred_to_the_stored_size() -> None:
    config = OFF.model_copy(update={"min_bytes": 5000})
    rows = [row(0, bytes=9000), row(1, bytes=10)]
    written, selection = choose([rows], config, None, [{"original_bytes": [4999, 5000]}])
    assert written[0]["keep"].to_pylist() == [False, True]
    said = {step["filter"]: step["reason"] for step in selection.funnel}
    assert said["file_size"] == "file below 5000 bytes"
    _, stored = choose([rows], config)
    assert {"filter": "file_size", "reason": "stored file below 5000 bytes"}.items() <= stored.funnel[2].items()
