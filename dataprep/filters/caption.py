"""Filters on the caption: length, letters, language, content."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from dataprep.filters.base import (
    LIST_HAS,
    RowFilter,
    check_range,
    describe_outside,
    is_within,
    read_floats,
    round_limit,
)
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

# Matched against the whole stripped caption, case-insensitively. The lookahead names the first letters of the phrases
# after it: with it a caption takes little more than half the time.
BOILERPLATE_PATTERNS = (
    r"[\w\-. ()]*\.(jpe?g|png|gif|webp|bmp|tiff?|heic)",  # a file name
    r"(img|dsc|dscf|dscn|pict?|image|photo|screenshot|mvimg|pxl)[\W_]*\d[\w\- .]*",  # a camera's numbering
    r"(image|photo|picture|img|untitled|no title|null|none|n/?a|thumbnail|logo|banner|placeholder|default)[\W\d]*",
    r".*(?=[abcfrsv])\b(click here|click to (enlarge|zoom|view)|buy now|add to cart|free shipping|sign up|read more"
    r"|cookie policy|view (more|larger)|share on (facebook|twitter)|all rights reserved)\b.*",
    r"(图片|照片|图像|无标题|未命名|缩略图|封面|暂无图片)[\W\d]*",
    r".*(点击(查看|购买|放大|进入|这里)|立即购买|加入购物车|查看大图|包邮|版权所有).*",
    r"(https?://|www\.)\S+",
)


class BoilerplateKeys(Config):
    """Keys of `Boilerplate`."""

    drop_boilerplate: bool = Field(default=True, description="drop captions that boilerplate_patterns match entirely")
    boilerplate_patterns: tuple[str, ...] = Field(
        default=BOILERPLATE_PATTERNS, strict=False, description="regular expressions of captions without content"
    )

    @field_validator("boilerplate_patterns")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression ({error}); correct it") from error
        return patterns


class Boilerplate(RowFilter):
    """Drops captions that one of ``patterns`` matches as a whole: file names, buttons, placeholders."""

    keys = BoilerplateKeys
    off: ClassVar = {"drop_boilerplate": False}
    catches = frozenset({"boilerplate"})
    columns = ("caption",)

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.pattern = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.DOTALL)

    @classmethod
    def from_config(cls, config: BoilerplateKeys, available: Collection[str]) -> Self | None:
        return cls(config.boilerplate_patterns) if config.drop_boilerplate and config.boilerplate_patterns else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        keep = [self.pattern.fullmatch(caption.strip()) is None for caption in rows["caption"].to_pylist()]
        return np.array(keep, dtype=bool), "caption says nothing about a picture"


class CaptionLengthKeys(Config):
    """Keys of `CaptionLength`."""

    min_caption_chars: int = Field(default=5, ge=0, description="minimum characters of a caption (LAION: 5)")
    max_caption_chars: int | None = Field(default=1000, ge=1, description="maximum characters of a caption")

    @model_validator(mode="after")
    def _check_chars(self) -> Self:
        check_range(self, "caption_chars")
        return self


class CaptionLength(RowFilter):
    """Keeps captions of ``least`` to ``most`` characters; None: no upper limit."""

    keys = CaptionLengthKeys
    off: ClassVar = {"min_caption_chars": 0, "max_caption_chars": None}
    catches = frozenset({"boilerplate"})
    columns = ("caption_chars",)

    def __init__(self, least: int, most: int | None) -> None:
        self.least, self.most = least, most

    @classmethod
    def from_config(cls, config: CaptionLengthKeys, available: Collection[str]) -> Self | None:
        least, most = config.min_caption_chars, config.max_caption_chars
        return cls(least, most) if least or most is not None else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        chars_N = read_floats(rows, "caption_chars")
        why = f"{describe_outside(self.least, self.most)} characters (select.min_caption_chars, max_caption_chars)"
        return is_within(chars_N, self.least, self.most), why


class CaptionWordsKeys(Config):
    """Keys of `CaptionWords`."""

    min_caption_words: int = Field(default=2, ge=0, description="minimum words")
    max_caption_words: int | None = Field(default=256, ge=1, description="maximum words")
    words: Literal["scripts", "spaces"] = Field(
        default="scripts",
        description="scripts: a Chinese, Japanese or Korean character counts as a word; spaces: words between spaces",
    )

    @model_validator(mode="after")
    def _check_words(self) -> Self:
        check_range(self, "caption_words")
        return self


class CaptionWords(RowFilter):
    """Keeps captions of ``least`` to ``most`` words; None: no upper limit.

    A Chinese, Japanese or Korean character counts as one word, unless ``between_spaces``.
    """

    keys = CaptionWordsKeys
    off: ClassVar = {"min_caption_words": 0, "max_caption_words": None}
    catches = frozenset({"boilerplate"})

    def __init__(self, least: int, most: int | None, between_spaces: bool = False) -> None:
        self.least, self.most, self.between_spaces = least, most, between_spaces
        self.columns = ("caption",) if between_spaces else ("caption_words",)

    @classmethod
    def from_config(cls, config: CaptionWordsKeys, available: Collection[str]) -> Self | None:
        least, most = config.min_caption_words, config.max_caption_words
        return cls(least, most, config.words == "spaces") if least or most is not None else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        if self.between_spaces:
            words_N = np.array([len(caption.split()) for caption in rows["caption"].to_pylist()], np.float64)
        else:
            words_N = read_floats(rows, "caption_words")
        why = f"{describe_outside(self.least, self.most)} words"
        if self.least == 2:  # the default; labels of one word are a usual kind of caption
            why += " (select.min_caption_words: 1 keeps captions of one word)"
        return is_within(words_N, self.least, self.most), why


class AlphaShareKeys(Config):
    """Keys of `AlphaShare`."""

    min_alpha_share: float = Field(
        default=0.5, ge=0, le=1, description="minimum share of letters among the visible characters"
    )


class AlphaShare(RowFilter):
    """Keeps captions whose visible characters are letters, of any script, to a share of at least ``least``."""

    keys = AlphaShareKeys
    off: ClassVar = {"min_alpha_share": 0.0}
    catches = frozenset({"boilerplate"})
    columns = ("alpha_share",)

    def __init__(self, least: float) -> None:
        self.least = least

    @classmethod
    def from_config(cls, config: AlphaShareKeys, available: Collection[str]) -> Self | None:
        return cls(config.min_alpha_share) if config.min_alpha_share else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        least = round_limit(rows, "alpha_share", self.least)
        return read_floats(rows, "alpha_share") >= least, f"less than {self.least:g} letters"


class LanguageKeys(Config):
    """Keys of `Language`."""

    languages: tuple[str, ...] | None = Field(
        default=None, strict=False, description="languages to keep, ISO 639-1; null: all"
    )
    language_from: Literal["caption", "listed"] = Field(
        default="caption", description="caption: from the classifier; listed: from the list's own column"
    )


class Language(RowFilter):
    """Keeps captions in one of ``languages``; ``measured`` is the column: the classifier's, or the list's."""

    keys = LanguageKeys
    off: ClassVar = {"languages": None}
    remedies: ClassVar = {
        "listed_language": ("select.language_from=listed", f"{LIST_HAS}, or set select.language_from=caption")
    }
    catches = frozenset({"boilerplate"})

    def __init__(self, languages: tuple[str, ...], measured: str = "language") -> None:
        self.languages, self.columns = languages, (measured,)

    @classmethod
    def from_config(cls, config: LanguageKeys, available: Collection[str]) -> Self | None:
        if config.languages is None:
            return None
        return cls(config.languages, "language" if config.language_from == "caption" else "listed_language")

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        keep = [language in self.languages for language in rows[self.columns[0]].to_pylist()]
        return np.array(keep, dtype=bool), f"not in {', '.join(self.languages)}"
