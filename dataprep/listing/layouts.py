"""Registry of the column layouts of public lists.

A layout names the columns that hold the URL, the caption, and whatever else the list's authors measured. Measured
columns get one standard name for every list, ``listed_<what>``: listed_width, listed_height (pixels),
listed_similarity_b32 and _l14 (CLIP), listed_aesthetic, listed_unsafe, listed_watermark (probabilities),
listed_language, listed_nsfw (label), listed_licence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ColumnLayout:
    """Column names of one kind of list, best first, compared case-insensitively.

    ``listed`` maps standard names to column names. A list that has any column of ``marks`` has this layout.
    """

    url: tuple[str, ...]
    caption: tuple[str, ...]
    listed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


LAYOUTS: dict[str, ColumnLayout] = {
    "laion": ColumnLayout(
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
    "commonpool": ColumnLayout(
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
    "coyo": ColumnLayout(
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
    "cc3m": ColumnLayout(("url",), ("caption",)),  # headerless: see table_reader.py
    "cc12m": ColumnLayout(("url",), ("caption",)),
}


def find_layout(name: str, columns: Sequence[str]) -> ColumnLayout | None:
    """Returns the layout called ``name``; for "auto" the layout whose column names match, or None."""
    if name != "auto":
        return LAYOUTS[name]
    if {"URL", "TEXT"} <= set(columns):  # LAION's first lists have no scores, but only LAION spells these in capitals
        return LAYOUTS["laion"]
    present = {column.lower() for column in columns}
    return next((layout for layout in LAYOUTS.values() if present.intersection(layout.marks)), None)


def find_listed_columns(layout: ColumnLayout | None, columns: Sequence[str]) -> dict[str, str]:
    """Returns {standard name: column of the list that holds it}."""
    by_name = {column.lower(): column for column in reversed(columns)}
    found = {}
    for standard, names in (layout.listed if layout else {}).items():
        if name := next((by_name[name] for name in names if name in by_name), None):
            found[standard] = name
    return found
