"""Filters on the caption: its length, letters, language, and whether it says anything."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from dataprep.filters.base import column, limit
from dataprep.filters.image import outside, within

# Matched against the whole caption, stripped, in any case.
BOILERPLATE_PATTERNS = (
    r"[\w\-. ()]*\.(jpe?g|png|gif|webp|bmp|tiff?|heic)",  # a file name
    r"(img|dsc|dscf|dscn|pict?|image|photo|screenshot|mvimg|pxl)[\W_]*\d[\w\- .]*",  # a camera's numbering
    r"(image|photo|picture|img|untitled|no title|null|none|n/?a|thumbnail|logo|banner|placeholder|default)[\W\d]*",
    r".*\b(click here|click to (enlarge|zoom|view)|buy now|add to cart|free shipping|sign up|read more|cookie policy"
    r"|view (more|larger)|share on (facebook|twitter)|all rights reserved)\b.*",
    r"(图片|照片|图像|无标题|未命名|缩略图|封面|暂无图片)[\W\d]*",
    r".*(点击(查看|购买|放大|进入|这里)|立即购买|加入购物车|查看大图|包邮|版权所有).*",
    r"(https?://|www\.)\S+",
)


class CaptionLength:
    """Keeps captions of ``least`` to ``most`` characters; None: no upper limit."""

    name = "caption_chars"
    columns = ("caption_chars",)

    def __init__(self, least: int, most: int | None) -> None:
        self.least, self.most = least, most

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        chars_N = column(rows, "caption_chars")
        return within(chars_N, self.least, self.most), f"{outside(self.least, self.most)} characters"


class CaptionWords:
    """Keeps captions of ``least`` to ``most`` words; None: no upper limit.

    A Chinese, Japanese or Korean character counts as one, or, ``between_spaces``, whatever stands between spaces.
    """

    name = "caption_words"

    def __init__(self, least: int, most: int | None, between_spaces: bool = False) -> None:
        self.least, self.most, self.between_spaces = least, most, between_spaces
        self.columns = ("caption",) if between_spaces else ("caption_words",)

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        if self.between_spaces:
            words_N = np.array([len(caption.split()) for caption in rows["caption"].to_pylist()], np.float64)
        else:
            words_N = column(rows, "caption_words")
        return within(words_N, self.least, self.most), f"{outside(self.least, self.most)} words"


class AlphaShare:
    """Keeps captions of which at least ``least`` of the visible characters are letters, of any script."""

    name = "alpha_share"
    columns = ("alpha_share",)

    def __init__(self, least: float) -> None:
        self.least = least

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        least = limit(rows, "alpha_share", self.least)
        return column(rows, "alpha_share") >= least, f"less than {self.least:g} letters"


class Boilerplate:
    """Drops captions that one of ``patterns`` matches as a whole: file names, buttons, placeholders."""

    name = "boilerplate"
    columns = ("caption",)

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.pattern = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.DOTALL)

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        keep = [self.pattern.fullmatch(caption.strip()) is None for caption in rows["caption"].to_pylist()]
        return np.array(keep, dtype=bool), "caption says nothing about a picture"


class Language:
    """Keeps captions in one of ``languages``, as ``measured`` says: told by the classifier, or by the list."""

    name = "language"

    def __init__(self, languages: tuple[str, ...], measured: str = "language") -> None:
        self.languages, self.columns = languages, (measured,)

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        keep = [language in self.languages for language in rows[self.columns[0]].to_pylist()]
        return np.array(keep, dtype=bool), f"not in {', '.join(self.languages)}"
