"""One rule for the caption in a cell of any format.

Text is a caption, and so is the text of a number. A list is several captions. Null, NaN and empty text are no caption.
An object is refused: which of its values is the caption cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.listing.column_names import CAPTION_NAMES, index_names

MAX_CAPTIONS = 32  # of an image
NAN = ("NaN", "nan")  # as pandas and Python write a missing text


class Captions(NamedTuple):
    """The captions of one cell, and what is wrong with it, if anything is."""

    texts: list[str]
    problem: str | None = None


def read_captions(value: Any) -> Captions:
    """Returns the captions of a cell's Python value."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return Captions([], "the caption is bytes that are not UTF-8")
    if value is None or (isinstance(value, float) and math.isnan(value)) or value in NAN or value == "":
        return Captions([])
    if isinstance(value, str):
        return Captions([replace_surrogates(value)])
    if isinstance(value, bool | int | float):
        return Captions([str(value)])
    if not isinstance(value, Sequence):
        return Captions([], "the caption is an object, neither text nor a list of texts")
    if any(isinstance(item, Sequence) and not isinstance(item, str | bytes) for item in value):
        return Captions([], "the caption is a list of lists")
    each = [read_captions(item) for item in value]
    problem = next((captions.problem for captions in each if captions.problem), None)
    texts = list(dict.fromkeys(text for captions in each for text in captions.texts))
    if len(texts) > MAX_CAPTIONS:
        problem = f"{len(texts)} captions, at most {MAX_CAPTIONS} are read"
    return Captions([], problem) if problem else Captions(texts)


def find_caption(described: Mapping[str, Any]) -> Any:
    """Returns the value of the first of `CAPTION_NAMES` in a JSON object that has a caption; None if none has."""
    by_name = index_names(described)
    values = [described[by_name[name]] for name in CAPTION_NAMES if name in by_name]
    return next((value for value in values if read_captions(value) != ([], None)), None)


def build_caption_columns(cells: Sequence[Captions]) -> dict[str, pa.Array]:
    """Returns column caption, without nulls, and caption_2 and so on as far as any cell has so many."""
    most = max((len(cell.texts) for cell in cells), default=0)
    columns = {"caption": pa.array([cell.texts[0] if cell.texts else "" for cell in cells], pa.string())}
    for place in range(1, most):
        texts = [cell.texts[place] if len(cell.texts) > place else None for cell in cells]
        columns[f"caption_{place + 1}"] = pa.array(texts, pa.string())
    return columns


def clean_text_column(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Applies the rule to a string column."""
    values = values.fill_null("")
    return pc.if_else(pc.is_in(values, pa.array(NAN)), "", values)


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which JSON can express and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", "replace").decode()
