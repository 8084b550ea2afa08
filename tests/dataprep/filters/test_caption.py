"""Filters on captions."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dataprep.filters.caption import BOILERPLATE_PATTERNS, Boilerplate


@pytest.mark.parametrize(
    "caption",
    [
        *("IMG_1234.jpg", "DSC00042", "photo 12", "image", "Untitled", "click here to buy", "图片", "点击查看大图"),
        *("https://a.test/x", "Free shipping on all orders over $50", "my holiday (3).PNG", "暂无图片"),
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
