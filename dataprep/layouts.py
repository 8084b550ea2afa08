"""Column layouts of public lists: which column is the URL, which the caption, and what else their makers measured.

What a list says of its rows gets one name whatever the list calls it, ``listed_<what>``, so that a rule on it works
with every list: listed_width, listed_height (pixels), listed_similarity_b32 and _l14 (CLIP), listed_aesthetic,
listed_unsafe, listed_watermark (probabilities), listed_language, listed_nsfw (label), listed_licence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.schema import UserError

TEXT = ("listed_language", "listed_nsfw", "listed_licence")  # the others are numbers
NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Layout:
    """Names in one kind of list, best first, compared without regard to case. ``marks``: any of these gives it away."""

    url: tuple[str, ...]
    caption: tuple[str, ...]
    listed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


LAYOUTS: dict[str, Layout] = {
    "laion": Layout(
        ("url",),
        ("text", "caption"),
        {
            "listed_width": ("width",),
            "listed_height": ("height",),
            "listed_similarity_b32": ("similarity",),
            "listed_aesthetic": ("aesthetic", "aesthetic_score"),
            "listed_unsafe": ("punsafe",),
            "listed_watermark": ("pwatermark",),
            "listed_language": ("language",),
            "listed_nsfw": ("nsfw",),
            "listed_licence": ("license",),
        },
        ("punsafe", "pwatermark"),
    ),
    "commonpool": Layout(
        ("url",),
        ("text",),
        {
            "listed_width": ("original_width",),
            "listed_height": ("original_height",),
            "listed_similarity_b32": ("clip_b32_similarity_score",),
            "listed_similarity_l14": ("clip_l14_similarity_score",),
        },
        ("clip_b32_similarity_score", "clip_l14_similarity_score"),
    ),
    "coyo": Layout(
        ("url",),
        ("text",),
        {
            "listed_width": ("width",),
            "listed_height": ("height",),
            "listed_similarity_b32": ("clip_similarity_vitb32",),
            "listed_similarity_l14": ("clip_similarity_vitl14",),
            "listed_aesthetic": ("aesthetic_score_laion_v2",),
            "listed_unsafe": ("nsfw_score_opennsfw2",),
            "listed_watermark": ("watermark_score",),
        },
        ("clip_similarity_vitb32", "clip_similarity_vitl14", "nsfw_score_opennsfw2"),
    ),
    "cc3m": Layout(("url",), ("caption",)),  # caption, then URL, without a header: see tables.py
    "cc12m": Layout(("url",), ("caption",)),
}


def find_layout(name: str, columns: Sequence[str]) -> Layout | None:
    """The layout called ``name``; for "auto" the one that the columns give away, or None."""
    if name != "auto":
        return LAYOUTS[name]
    if {"URL", "TEXT"} <= set(columns):  # LAION's first lists carried no scores, but their spelling is their own
        return LAYOUTS["laion"]
    present = {column.lower() for column in columns}
    return next((layout for layout in LAYOUTS.values() if present.intersection(layout.marks)), None)


def listed_columns(layout: Layout | None, columns: Sequence[str]) -> dict[str, str]:
    """standard name -> the column that has it."""
    by_name = {column.lower(): column for column in reversed(columns)}
    found = {}
    for standard, names in (layout.listed if layout else {}).items():
        if name := next((by_name[name] for name in names if name in by_name), None):
            found[standard] = name
    return found


def standard_values(standard: str, values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """A listed column in its standard type: text, or float64 with null for what is not a number.

    UserError where the column holds neither text nor numbers.
    """
    kind = values.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if standard in TEXT:
        if not text and not pa.types.is_null(kind):
            raise UserError(f"{where}: {standard} is of type {kind}, not text; set listing.layout to the list's own")
        return values.cast(pa.string())
    if text:
        return pc.if_else(pc.match_substring_regex(values, NUMBER), pc.utf8_trim_whitespace(values), None).cast(
            pa.float64()
        )
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise UserError(f"{where}: {standard} is of type {kind}, not a number; set listing.layout to the list's own")
    return values.cast(pa.float64(), safe=False)
