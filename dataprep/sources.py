"""Where rows come from: a table of URLs, a folder of images, webdataset tars, or the embedded corpus.

They are written as listing shards, Parquet of kind "listing": url, caption, then the source's other columns. For a
folder or tars the URL is the file's path below the folder (and its place in the tar), and the folder itself stands in
the schema metadata under `ROOT_KEY`: only a listing made here can send the download to a local file, never a URL in
somebody's table.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from dataprep import storage
from dataprep.decode import IMAGE_EXTENSIONS
from dataprep.layouts import Layout, find_layout, listed_columns, standard_values
from dataprep.redact import blank_rows, url_hash
from dataprep.scenes import ScenesConfig, rows
from dataprep.schema import Config, UserError, write_table
from dataprep.tables import BATCH_ROWS, EXTENSIONS, read_batches, table_extension
from dataprep.webdataset import read_samples

ROOT_KEY = b"imagen_ray.root"
# What a picture's bytes are read from later is part of the listing: another picture of the same name is another row.
FILE_HASH = "file_sha256"
# Spellings seen in public lists (LAION URL/TEXT, CommonPool and COYO url/text, CC12M url/caption), best first.
URL_NAMES = ("url", "image_url", "img_url", "image", "link")
CAPTION_NAMES = ("caption", "text", "alt_text", "alt", "title", "description", "prompt")
FILE_NAMES = ("file_name", "filename", "file", "path", "image")
CAPTION_FILES = ("metadata.jsonl", "metadata.csv", "captions.csv", "captions.jsonl")
TAR = (".tar",)
CAPTION_SUFFIXES = (".txt", ".caption")
# The columns that listing and download add: a source's column of the same name is kept as source_<name>.
RESERVED = frozenset(
    (
        FILE_HASH,
        *("key", "url", "caption", "status", "reason", "error_message", "sha256"),
        *("width", "height", "original_width", "original_height", "original_bytes"),
    )
)


class ListingConfig(Config):
    """What to train on."""

    source: Literal["scenes", "table", "folder", "webdataset"] = Field(
        default="scenes", description="embedded corpus, list of URLs, images, or tars of images as img2dataset writes"
    )
    path: str | None = Field(
        default=None,
        description="table, webdataset: a file, a glob or a folder of files; folder: the folder; fsspec URL",
    )
    layout: Literal["auto", "laion", "commonpool", "coyo", "cc3m", "cc12m"] = Field(
        default="auto", description="whose columns the list has; auto: told by their names, see docs/sources.md"
    )
    url_column: str | None = Field(default=None, description="table: the column of URLs; None: recognised by its name")
    caption_column: str | None = Field(default=None, description="the column of captions; None: recognised by its name")
    rows_per_shard: int = Field(
        default=1000, ge=1, le=10_000, description="rows a shard; a sample's key has 4 digits for its row"
    )
    limit: int | None = Field(default=None, ge=1, description="take only the first rows of the source")
    scenes: ScenesConfig = Field(default=ScenesConfig(), description="the embedded corpus, where source is scenes")

    @model_validator(mode="after")
    def _path_fits_source(self) -> ListingConfig:
        if self.source != "scenes" and not self.path:
            raise ValueError(f"path is not set while source is {self.source!r}; set path to the {self.source}")
        if self.source == "scenes" and self.path is not None:
            raise ValueError(f"path {self.path!r} is set while source is 'scenes'; set source to table or folder")
        if self.source in ("scenes", "folder") and self.layout != "auto":
            raise ValueError(f"layout {self.layout!r} is set while source is {self.source!r}; leave layout out")
        return self


def source_files(config: ListingConfig) -> list[str]:
    """Every file whose bytes decide the listing or the images behind it, sorted; none for the embedded corpus.

    Raises UserError where there is none, or where a given file does not exist.
    """
    if config.source == "scenes":
        return []
    assert config.path is not None
    if config.source == "folder":
        return _folder_files(config.path)
    return _matching_files(config.path, TAR if config.source == "webdataset" else EXTENSIONS)


def check_source(config: ListingConfig) -> list[str]:
    """The columns of the listing's first rows; none for the embedded corpus.

    Raises UserError for what `list_rows` would stumble over at its start, without reading a table to its end.
    """
    if config.source == "scenes":
        return []
    first = next(list_rows(config, seed=0, hashes=False), None)
    if first is None:
        raise UserError(f"listing.path {config.path}: no rows; give a source with at least one")
    return list(first.column_names)


def list_rows(config: ListingConfig, seed: int, hashes: bool = True) -> Iterator[pa.Table]:
    """Yields the listing in order, in tables of bounded size: string columns url and caption first, then the others.

    Rows of a folder or of tars carry `FILE_HASH`, the sha256 of the image file or of the tar; without ``hashes`` null.
    Raises UserError, before the first row or at the file concerned, for what is missing, empty or unreadable.
    """
    left = config.limit
    for table in _source_tables(config, seed, hashes):
        if left is not None:
            table = table.slice(0, left)
            left -= table.num_rows
        if table.num_rows:
            yield table
        if left == 0:
            return


def write_listing(
    config: ListingConfig, seed: int, out_dir: str | Path, forgotten: Collection[str] = frozenset()
) -> dict[str, int]:
    """Writes the listing to ``out_dir``/{i:05d}.parquet; counters rows and shards. UserError where there are no rows.

    Every shard but the last has rows_per_shard rows, so appending to a source changes the last shard alone.
    A row whose URL is among the ``forgotten`` (`redact.url_hash`) keeps its place and loses all that it says, so that
    no other row changes its key; counter forgotten.
    """
    pending: list[pa.Table] = []
    rows_total = shards = blanked = 0

    def write(table: pa.Table) -> None:
        nonlocal shards, rows_total, blanked
        if forgotten:
            gone_N = np.array([url_hash(url) in forgotten for url in table["url"].to_pylist()])
            table = blank_rows(table, "listing", gone_N) if gone_N.any() else table
            blanked += int(gone_N.sum())
        write_table(table.combine_chunks(), Path(out_dir) / f"{shards:05d}.parquet", "listing")
        shards, rows_total = shards + 1, rows_total + table.num_rows

    for table in list_rows(config, seed):
        pending.append(table)
        while sum(part.num_rows for part in pending) >= config.rows_per_shard:
            joined = _concatenate(pending)
            write(joined.slice(0, config.rows_per_shard))
            rest = joined.slice(config.rows_per_shard)
            pending = [rest] if rest.num_rows else []
    if pending:
        write(_concatenate(pending))
    if rows_total == 0:
        raise UserError(f"listing.path {config.path}: no rows; give a source with at least one")
    return {"rows": rows_total, "shards": shards} | ({"forgotten": blanked} if forgotten else {})


def _concatenate(tables: list[pa.Table]) -> pa.Table:
    """Joins tables whose columns may differ: a column that a table lacks is null there."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"listing.path: files disagree on a column's type ({error}); make them alike") from error


def _source_tables(config: ListingConfig, seed: int, hashes: bool) -> Iterator[pa.Table]:
    if config.source == "scenes":
        yield _normalised(rows(config.scenes, seed), "url", "caption")
    elif config.source == "folder":
        yield from _folder_tables(config, hashes)
    elif config.source == "webdataset":
        yield from _tar_tables(config, hashes)
    else:
        for file in source_files(config):
            for table in read_batches(file):
                yield _from_table(config, file, table)


def _from_table(config: ListingConfig, file: str, table: pa.Table) -> pa.Table:
    """Rows of a list in the listing's columns."""
    names = table.column_names
    layout = find_layout(config.layout, names)
    url = _pick(file, names, config.url_column, layout.url if layout else URL_NAMES, "url_column")
    captions = layout.caption if layout else CAPTION_NAMES
    caption = _pick(file, names, config.caption_column, captions, "caption_column")
    return _normalised(table, url, caption, layout, file)


def _normalised(
    table: pa.Table, url: str, caption: str, layout: Layout | None = None, where: str = "listing"
) -> pa.Table:
    """url and caption first, as text without nulls; then what the list measured, under its standard names; then the
    other columns, renamed where a name is reserved."""
    columns = {
        name: _text_column(table[column], where, column) for name, column in (("url", url), ("caption", caption))
    }
    listed = listed_columns(layout, [name for name in table.column_names if name not in (url, caption)])
    for standard, name in listed.items():
        columns[standard] = standard_values(standard, table[name], f"{where}: column {name}")
    for name in table.column_names:
        if name not in (url, caption, *listed.values()):
            kept = f"source_{name}" if name in RESERVED or name.startswith("listed_") else name
            while kept in columns or (kept != name and kept in table.column_names):
                kept = f"source_{kept}"
            columns[kept] = table[name]
    return pa.table(columns)


def _text_column(values: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    try:
        return values.cast(pa.string()).fill_null("")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        problem = f"column {name!r} is of type {values.type}, not text"
        raise UserError(f"listing.path {where}: {problem}; name another") from error


def _tar_tables(config: ListingConfig, hashes: bool) -> Iterator[pa.Table]:
    """The samples of every tar, in order. A picture's URL is relative to the folder that all tars are below."""
    files = source_files(config)
    root = posixpath.commonprefix(files).rpartition("/")[0]
    full = storage.absolute(root)
    for file in files:
        sha256 = storage.sha256_file(file)[0] if hashes else None
        for table in read_samples(file, file[len(root) :].lstrip("/")):
            caption = "caption"
            if config.caption_column is not None:
                caption = _pick(file, table.column_names, config.caption_column, (), "caption_column")
            layout = find_layout(config.layout, table.column_names)
            listed = _normalised(table, "url", caption, layout, file)
            listed = listed.append_column(FILE_HASH, pa.array([sha256] * listed.num_rows, pa.string()))
            yield listed.replace_schema_metadata({ROOT_KEY: full.encode()})


def _pick(file: str, names: list[str], wanted: str | None, known: tuple[str, ...], key: str) -> str:
    """The column called ``wanted``, or the first by a ``known`` name, whatever its case."""
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


def _matching_files(path: str, extensions: tuple[str, ...]) -> list[str]:
    """The files of a glob or a folder, sorted, or the one file. UserError where there is none."""
    fs, inner = storage.filesystem(path)
    prefix = path[: len(path) - len(inner)] if path.endswith(inner) else ""
    if "*" in path or "?" in path:
        files = sorted(str(name) for name in fs.glob(inner))
        if not files:
            raise UserError(f"listing.path {path}: no file matches; check the pattern")
    elif fs.isdir(inner):
        names = (name for name in storage.list_files(path) if _has_extension(name, extensions))
        files = [storage.join(path, name) for name in names]
        if not files:
            raise UserError(f"listing.path {path}: the folder holds no {' '.join(extensions)} file")
        return files
    elif fs.exists(inner):
        return [path]
    else:
        raise UserError(f"listing.path {path}: no such file; check the path")
    return [prefix + name if prefix and not name.startswith(prefix) else name for name in files]


def _has_extension(name: str, extensions: tuple[str, ...]) -> bool:
    return table_extension(name) in extensions if extensions == EXTENSIONS else name.lower().endswith(extensions)


def _folder_files(path: str) -> list[str]:
    fs, inner = storage.filesystem(path)
    if not fs.isdir(inner):
        raise UserError(f"listing.path {path}: no such folder; check the path")
    names = storage.list_files(path)
    if not any(_is_image(name) for name in names):
        raise UserError(f"listing.path {path}: no image ({' '.join(IMAGE_EXTENSIONS)}) in the folder; check the path")
    captions = (*CAPTION_SUFFIXES, ".csv", ".jsonl")
    return [storage.join(path, name) for name in names if _is_image(name) or name.endswith(captions)]


def _is_image(name: str) -> bool:
    return name.lower().endswith(tuple(f".{extension}" for extension in IMAGE_EXTENSIONS))


def _folder_tables(config: ListingConfig, hashes: bool) -> Iterator[pa.Table]:
    """One row an image below the folder, sorted by path, with the caption beside it or from a captions table."""
    assert config.path is not None
    root = storage.absolute(config.path)
    files = [file[len(config.path.rstrip("/")) + 1 :] for file in _folder_files(config.path)]
    images = [name for name in files if _is_image(name)]
    listed = _captions_table(config, root, set(files))
    present = set(files)
    captions = [listed.get(name) or _caption_beside(root, name, present) for name in images]
    if not any(captions):
        raise UserError(
            f"listing.path {config.path}: no image has a caption; put name.txt beside name.jpg, or a "
            "captions.csv with columns file_name and caption into the folder"
        )
    for start in range(0, len(images), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        sha256 = [storage.sha256_file(storage.join(root, name))[0] if hashes else None for name in images[part]]
        columns = {"url": images[part], "caption": captions[part], FILE_HASH: sha256}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        yield table.replace_schema_metadata({ROOT_KEY: root.encode()})


def _caption_beside(root: str, name: str, present: set[str]) -> str:
    stem = name.rpartition(".")[0]
    for suffix in CAPTION_SUFFIXES:
        if stem + suffix in present:
            return storage.read_bytes(storage.join(root, stem + suffix)).decode("utf-8", errors="replace").strip()
    return ""


def _captions_table(config: ListingConfig, root: str, present: set[str]) -> dict[str, str]:
    """file -> caption from the first of `CAPTION_FILES` in the folder; empty where there is none."""
    name = next((name for name in CAPTION_FILES if name in present), None)
    captions: dict[str, str] = {}
    if name is not None:
        for table in read_batches(storage.join(root, name)):
            file_column = _pick(name, table.column_names, None, FILE_NAMES, "path")
            caption_column = _pick(name, table.column_names, config.caption_column, CAPTION_NAMES, "caption_column")
            files, texts = table[file_column].to_pylist(), table[caption_column].to_pylist()
            captions.update({str(file): str(text or "") for file, text in zip(files, texts, strict=True)})
    return captions
