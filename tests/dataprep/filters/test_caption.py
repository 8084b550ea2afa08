"""Filters on captions."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dataprep.filters.caption import BOILERPLATE_PATTERNS, Boilerplate
from tests.helpers.selection import OFF, choose, row


@pytest.mark.parametrize(
    "caption",
    [
        *("IMG_1234.jpg", "DSC00042", "photo 12", "image", "Untitled", "click here to buy", "图片", "点击查看大图"),
        *("Buy now", "add to cart", "so SIGN UP", "read more", "Cookie policy", "view larger", "share on Facebook"),
        *("© all rights reserved", "https://a.test/x", "Free shipping on all orders over $50", "my holiday (3).PNG"),
        "暂无图片",
    ],
)
def test_boilerplate(caption: str) -> None:
    keep, _ = Boilerplate(BOILERPLATE_PATTERNS).judge(pa.table({"caption": [caption, f" {caption} "]}))
    assert not keep.any()


@pytest.mark.parametrize(
    "caption", ["a red circle", "image of a cat", "photo of 2 dogs", "一张红色圆形的图片", "Logo design on a mug"]
)
def test_not_boilerplate(caption: str) -> None:
    keep, _ = Boilerplate(BOILERPLATE_PATTERNS).judge(pa.table({"caption": [caption]}))
    assert keep.all()


def test_the_funnel_says_which_key_keeps_labels_of_one_word() -> None:
    config = OFF.model_copy(update={"min_caption_words": 2, "min_caption_chars": 5})
    _, selection = choose([[row(0), row(1, caption="house", caption_words=1, caption_chars=5)]], config)
    said = {step["filter"]: step["reason"] for step in selection.funnel}
    assert said["caption_words"] == "not 2 to 256 words (select.min_caption_words: 1 keeps captions of one word)"
    assert "select.min_caption_chars" in said["caption_chars"]
