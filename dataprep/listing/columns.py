"""Columns of a source in the listing's form: url and caption first, then standard names, then the rest."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.captions import build_caption_columns, clean_text_column, read_captions
from dataprep.listing.column_names import index_names
from dataprep.listing.layouts import ColumnLayout, find_listed_columns
from dataprep.listing.parquet_tables import encode_bytes, holds_bytes, is_binary

# sha256 of the file that an image is read from: another image under the same name is another row.
FILE_HASH = "file_sha256"
# Why a row has no image though it was never requested: a key of `failure_reasons.REASONS`, and the details.
REASON, MESSAGE = "reason", "error_message"
# Columns that listing and download add: a source column of the same name is kept as source_<name>.
FILE_COLUMN = "path"  # the key that names the source, for `pick_column` of file names, which have no key of their own
RESERVED = frozenset(
    (
        *(FILE_HASH, REASON, MESSAGE),
        *("key", "url", "caption", "status", "sha256"),
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
        if wanted.strip() in names:  # names of a header are without the blanks around them
            return wanted.strip()
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"set listing.{key} to one of them"
        raise UserError(f"listing.{key} {wanted!r}: no such column in {file}, which has {', '.join(names)}; {hint}")
    by_name = index_names(names)
    for candidate in known:
        if candidate in by_name:
            return by_name[candidate]
    shown = ", ".join(repr(name) if name != name.strip() or not name else name for name in names)
    remedy = f"set listing.{key} to one of them" if key != FILE_COLUMN else f"call the one of file names {known[0]}"
    raise UserError(
        f"listing.{key}: none recognised in {file}, which has {shown}; {remedy}, or put a line of column names above "
        "the first row if there is none"
    )


def normalise_columns(
    table: pa.Table,
    url: str,
    caption: str | None,
    layout: ColumnLayout | None = None,
    where: str = "listing",
    *,
    values: Sequence[Any] | None = None,
    account: Account | None = None,
) -> pa.Table:
    """Returns url and caption as text without nulls, reason and error_message if any row has them, then the columns
    that ``layout`` knows under their standard names, then all other columns, renamed if their name is reserved.

    Args:
        caption: None if the source has no captions.
        values: cells of the caption column as they were read, if they are not text alone.
    """
    columns: dict[str, Any] = {"url": _convert_to_text(table[url], where, url)}
    captions, problems = _read_caption_column(table, caption, where, values, account)
    columns |= {"caption": captions.pop("caption")}
    reasons = pc.if_else(pc.equal(pc.utf8_trim_whitespace(columns["url"]), ""), "url", pa.scalar(None, pa.string()))
    messages = pc.if_else(pc.is_valid(reasons), "the row has no URL", pa.scalar(None, pa.string()))
    if problems.null_count < len(problems):
        reasons, messages = pc.if_else(pc.is_valid(problems), "text", reasons), pc.coalesce(problems, messages)
    if reasons.null_count < len(reasons):
        columns |= {REASON: reasons, MESSAGE: messages}
    columns |= captions
    used = (url, caption) if caption is not None else (url,)
    listed = find_listed_columns(layout, [name for name in table.column_names if name not in used])
    for standard, name in listed.items():
        columns[standard] = convert_listed(standard, table[name], f"{where}: column {name}")
    for name in table.column_names:
        if name not in (*used, *listed.values()):
            kept = f"source_{name}" if name in RESERVED or name.startswith("listed_") else name
            while kept in columns or (kept != name and kept in table.column_names):
                kept = f"source_{kept}"
            if is_binary(table[name].type):
                columns[kept] = encode_bytes(table[name])
            elif not holds_bytes(table[name].type):
                columns[kept] = table[name]
            elif account is not None and f"{where}: {name}" not in account.named.get("columns", ()):
                account.name("columns", f"{where}: {name}")
    return pa.table(columns)


def add_reasons(table: pa.Table, reasons: Sequence[str | None], messages: Sequence[str | None]) -> pa.Table:
    """Returns a normalised table with the given reasons instead of those that it has, where one is given."""
    if not any(reasons):
        return table
    for name, texts in ((REASON, reasons), (MESSAGE, messages)):
        column = pa.chunked_array([pa.array(texts, pa.string())])
        if name in table.column_names:
            column = pc.coalesce(column, table[name])
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    return table


def _read_caption_column(
    table: pa.Table, name: str | None, where: str, values: Sequence[Any] | None, account: Account | None
) -> tuple[dict[str, Any], Any]:
    """Returns the caption columns, and what is wrong with each row's caption or null."""
    nothing = pa.nulls(table.num_rows, pa.string())
    if name is None:
        return {"caption": pa.array([""] * table.num_rows, pa.string())}, nothing
    kind = table[name].type
    if values is None and not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_floating(kind)):
        return {"caption": clean_text_column(_convert_to_text(table[name], where, name))}, nothing
    cells = [read_captions(value) for value in (table[name].to_pylist() if values is None else values)]
    if account is not None:
        account.count("several_captions", sum(len(cell.texts) > 1 for cell in cells))
    return build_caption_columns(cells), pa.array([cell.problem for cell in cells], pa.string())


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
