"""Tables as a source: lists of URLs, and Parquet and Arrow with the images inside."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY
from dataprep.io.parquet_cells import cell_path, find_image_column
from dataprep.listing.account import Account
from dataprep.listing.column_names import CAPTION_NAMES, URL_NAMES
from dataprep.listing.columns import FILE_HASH, normalise_columns, pick_column
from dataprep.listing.config import SourceConfig
from dataprep.listing.files import find_matching_files
from dataprep.listing.layouts import find_layout
from dataprep.listing.parquet_tables import find_conflicting_columns, read_schema
from dataprep.listing.read_options import Batch, ReadOptions
from dataprep.listing.table_reader import EXTENSIONS, read_batches, table_extension

# Of a folder; a .txt or .json between other tables is rather a note.
LISTED_EXTENSIONS = tuple(extension for extension in EXTENSIONS if extension not in (".txt", ".json"))

COLUMNAR = (".parquet", ".arrow")
CELL_COLUMN = "\0cell"  # the places of images inside a table; no source has such a name


def find_files(config: SourceConfig, account: Account | None = None) -> list[str]:
    """Returns the tables, sorted. Raises UserError if there is none."""
    assert config.path is not None

    def is_listed(name: str) -> bool:
        return table_extension(name) in LISTED_EXTENSIONS

    def is_table(name: str) -> bool:
        return table_extension(name) is not None

    wanted = [(is_listed, LISTED_EXTENSIONS), (is_table, EXTENSIONS)]
    return find_matching_files(config.path, wanted, account, config.hidden_files)


def read_tables(
    config: SourceConfig, hashes: bool, account: Account, files: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yields the rows of every table in order, in the listing's columns; ``files`` None: those of the path."""
    files = files or find_files(config, account)
    options = make_options(config, account)
    if hashes and len(files) > 1:  # a check reads the first file alone
        schemas = [read_schema(file) for file in files if table_extension(file) in COLUMNAR]
        options = replace(options, as_text=find_conflicting_columns(schemas))
    root = posixpath.commonprefix(files).rpartition("/")[0]
    has_images = _find_images(config, files[0]) is not None
    for file in files:
        image = _find_images(config, file)
        if (image is not None) is not has_images:
            with_images, with_urls = (files[0], file) if has_images else (file, files[0])
            raise UserError(
                f"listing.path {config.path}: {with_images} has the images inside and {with_urls} has URLs; make two "
                "runs of them, or set listing.url_column"
            )
        if image is None:
            for batch in read_batches(file, options):
                yield _read_urls(config, file, batch, account)
            continue
        sha256 = storage.sha256_file(file)[0] if hashes else None
        first = 0
        for batch in read_batches(file, options):
            table = _read_images(config, file, batch, account, (file[len(root) :].lstrip("/"), image, first))
            first += table.num_rows
            table = table.append_column(FILE_HASH, pa.array([sha256] * table.num_rows, pa.string()))
            yield table.replace_schema_metadata({ROOT_KEY: storage.absolute(root).encode()})


def make_options(config: SourceConfig, account: Account) -> ReadOptions:
    """Returns how tables are read by ``config``."""
    names = tuple(name for name in (config.url_column, config.caption_column) if name is not None)
    return ReadOptions(config.encoding, config.quotes, names, account)


def _find_images(config: SourceConfig, file: str) -> str | None:
    """Returns the column of images inside a Parquet or Arrow file; None for any other table."""
    if table_extension(file) not in COLUMNAR:
        return None
    column = find_image_column(read_schema(file))
    return None if config.url_column not in (None, column) else column


def _read_urls(config: SourceConfig, file: str, batch: Batch, account: Account) -> pa.Table:
    names = batch.table.column_names
    layout = find_layout(config.layout, names)
    url = pick_column(file, names, config.url_column, layout.url if layout else URL_NAMES, "url_column")
    others = [name for name in names if name != url]
    caption = _pick_caption(config, file, names if config.caption_column else others) if others else None
    values = batch.values.get(caption) if caption else None
    return normalise_columns(batch.table, url, caption, layout, file, values=values, account=account)


def _pick_caption(config: SourceConfig, file: str, names: list[str]) -> str:
    layout = find_layout(config.layout, names)
    captions = layout.caption if layout else CAPTION_NAMES
    return pick_column(file, names, config.caption_column, captions, "caption_column")


def _read_images(
    config: SourceConfig, file: str, batch: Batch, account: Account, place: tuple[str, str, int]
) -> pa.Table:
    """Reads rows whose images are inside the table: ``place`` is its relative name, the column, the first row."""
    relative, column, start = place
    urls = [cell_path(relative, column, start + row) for row in range(batch.table.num_rows)]
    names = batch.table.column_names
    table = batch.table.append_column(CELL_COLUMN, pa.array(urls, pa.string()))
    caption = _pick_caption(config, file, names)
    return normalise_columns(table, CELL_COLUMN, caption, find_layout(config.layout, names), file, account=account)
