"""Columns of a source in the listing's form: url and caption first, then standard names, then the rest."""

from __future__ import annotations

import difflib

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.io.errors import UserError
from dataprep.listing.layouts import ColumnLayout, find_listed_columns

# sha256 of the file that an image is read from: another image under the same name is another row.
FILE_HASH = "file_sha256"
# Spellings in public lists (LAION URL/TEXT, CommonPool and COYO url/text, CC12M url/caption), best first.
URL_NAMES = ("url", "image_url", "img_url", "image", "link")
CAPTION_NAMES = ("caption", "text", "alt_text", "alt", "title", "description", "prompt")
# Columns that listing and download add: a source column of the same name is kept as source_<name>.
RESERVED = frozenset(
    (
        FILE_HASH,
        *("key", "url", "caption", "status", "reason", "error_message", "sha256"),
        *("width", "height", "original_width", "original_height", "original_bytes"),
    )
)
TEXT = ("listed_language", "listed_nsfw", "listed_licence")  # the other standard columns are numbers
NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


def pick_column(file: str, names: list[str], wanted: str | None, known: tuple[str, ...], key: str) -> str:
    """Returns the column called ``wanted``, or the first with a ``known`` name, case-insensitively.

    Raises UserError, naming ``listing.<key>``, if there is none.
    """
    if wanted is not None:
        if wanted in names:
            return wanted
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"set listing.{key} to one of them"
        raise UserError(f"listing.{key} {wanted!r}: no such column in {file}, which has {', '.join(names)}; {hint}")
    by_name = {name.lower(): name for name in reversed(names)}
    for candidate in known:
        if candidate in by_name:
            return by_name[candidate]
    raise UserError(
        f"listing.{key}: none recognised in {file}, which has {', '.join(names)}; set listing.{key} to one of them"
    )


def normalise_columns(
    table: pa.Table, url: str, caption: str, layout: ColumnLayout | None = None, where: str = "listing"
) -> pa.Table:
    """Returns url and caption as text without nulls, then the columns that ``layout`` knows under their standard
    names, then all other columns, renamed if their name is reserved."""
    columns = {
        name: _convert_to_text(table[column], where, column) for name, column in (("url", url), ("caption", caption))
    }
    listed = find_listed_columns(layout, [name for name in table.column_names if name not in (url, caption)])
    for standard, name in listed.items():
        columns[standard] = convert_listed(standard, table[name], f"{where}: column {name}")
    for name in table.column_names:
        if name not in (url, caption, *listed.values()):
            kept = f"source_{name}" if name in RESERVED or name.startswith("listed_") else name
            while kept in columns or (kept != name and kept in table.column_names):
                kept = f"source_{kept}"
            columns[kept] = table[name]
    return pa.table(columns)


def _convert_to_text(values: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    try:
        return values.cast(pa.string()).fill_null("")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        problem = f"column {name!r} is of type {values.type}, not text"
        raise UserError(f"listing.path {where}: {problem}; name another") from error


def convert_listed(standard: str, values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Casts a listed column to its standard type: string, or float64 with null for text that is not a number.

    Raises UserError if the column holds neither text nor numbers.
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
