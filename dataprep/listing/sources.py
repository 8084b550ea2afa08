"""The rows of every kind of source as one stream: url, caption, then the source's other columns.

The URL of a row from a folder or tar is the file's path below the folder (and its byte range in the tar); the schema
metadata holds the folder under `dataprep.io.parquet.ROOT_KEY`. Only a listing made here can therefore make the download
read a local file, never a URL in a third party's table.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from dataprep.io.errors import UserError
from dataprep.listing import folder_source, table_source, tar_source
from dataprep.listing.account import Account
from dataprep.listing.columns import MESSAGE, REASON, normalise_columns
from dataprep.listing.config import ListingConfig
from dataprep.synthetic.corpus import list_scenes


def find_source_files(config: ListingConfig) -> list[str]:
    """Returns every file that the listing or its images are read from, sorted; none for the embedded corpus.

    Raises UserError if there is none, or if a given file does not exist.
    """
    if config.source == "scenes":
        return []
    if config.source == "folder":
        return folder_source.find_files(config)
    return tar_source.find_files(config) if config.source == "webdataset" else table_source.find_files(config)


def check_source(config: ListingConfig) -> list[str]:
    """Returns the columns of the first rows; none for the embedded corpus.

    Raises UserError for what would make `list_rows` fail at its start, without reading a table to its end.
    """
    if config.source == "scenes":
        return []
    first = next(list_rows(config, seed=0, hashes=False), None)
    if first is None:
        raise UserError(f"listing.path {config.path}: no rows; give a source with at least one")
    if REASON in first.column_names and first[REASON].null_count == 0:
        raise describe_unusable(config, first, first.num_rows)
    return [name for name in first.column_names if name not in (REASON, MESSAGE)]


def describe_unusable(config: ListingConfig, rows: pa.Table, count: int) -> UserError:
    """Returns the error for ``count`` rows of which none can have an image, with the reason of the first."""
    first = rows.slice(0, 1).to_pylist()[0]
    return UserError(
        f"listing.path {config.path}: none of the {count} rows read can be used; "
        f"{first['url'] or 'the first'}: {first[MESSAGE]}"
    )


def list_rows(
    config: ListingConfig, seed: int, hashes: bool = True, account: Account | None = None
) -> Iterator[pa.Table]:
    """Yields all rows in order, in tables of bounded size: string columns url and caption first, then the others.

    Rows of a folder, of tars, or of tables with the images inside have column `FILE_HASH`, the sha256 of the file that
    the image is read from, null if not ``hashes``. Rows that cannot have an image have `columns.REASON` and
    `columns.MESSAGE`. ``account`` gets what the source holds besides.
    Raises UserError, before the first row or at the file concerned, for missing, empty and unreadable input.
    """
    left = config.limit
    for table in _read_tables(config, seed, hashes, account or Account()):
        if left is not None:
            table = table.slice(0, left)
            left -= table.num_rows
        if table.num_rows:
            yield table
        if left == 0:
            return


def _read_tables(config: ListingConfig, seed: int, hashes: bool, account: Account) -> Iterator[pa.Table]:
    if config.source == "scenes":
        scenes = normalise_columns(list_scenes(config.scenes, seed), "url", "caption")
        account.records += scenes.num_rows
        yield scenes
    elif config.source == "folder":
        yield from folder_source.read_tables(config, hashes, account)
    elif config.source == "webdataset":
        yield from tar_source.read_tables(config, hashes, account)
    else:
        yield from table_source.read_tables(config, hashes, account)
