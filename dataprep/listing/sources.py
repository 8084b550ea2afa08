"""The rows of every kind of source as one stream: url, caption, then the source's other columns.

The URL of a row from a folder or tar is the file's path below the folder (and its byte range in the tar); the schema
metadata holds the folder under `dataprep.io.parquet.ROOT_KEY`. Only a listing made here can therefore make the download
read a local file, never a URL in a third party's table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.source_column import SOURCE_COLUMN
from dataprep.listing import dataset_source, folder_source, table_source, tar_source
from dataprep.listing.account import Account
from dataprep.listing.columns import MESSAGE, REASON, normalise_columns
from dataprep.listing.config import ONLY_SOURCE, ListingConfig, SourceConfig
from dataprep.listing.dataset_files import HUB_REMEDY
from dataprep.synthetic.corpus import list_scenes

KEY = re.compile(rf"\blisting\.({'|'.join(SourceConfig.model_fields)})\b")


class SourceRows(NamedTuple):
    """A part of a source's rows, with the source's name."""

    source: str
    table: pa.Table


def find_source_files(config: ListingConfig) -> list[str]:
    """Returns every file that the listing or its images are read from, sorted by source; none for the embedded corpus.

    Raises UserError if a source has none, or if a given file does not exist.
    """
    files = []
    for name, source in config.list_sources().items():
        with _name_source(name):
            files += _find_files(source)
    return files


def _find_files(config: SourceConfig) -> list[str]:
    if config.source == "scenes":
        return []
    if config.source == "folder":
        return folder_source.find_files(config)
    if config.source == "dataset":
        return dataset_source.find_files(config)
    return tar_source.find_files(config) if config.source == "webdataset" else table_source.find_files(config)


def check_source(config: ListingConfig) -> dict[str, pa.DataType]:
    """Returns the columns of the first rows of all sources, with their types; none for the embedded corpus.

    Raises UserError for what would make `read_sources` fail at its start, without reading a table to its end.
    """
    columns: dict[str, pa.DataType] = {}
    for name, source in config.list_sources().items():
        if source.source == "scenes":
            continue
        with _name_source(name):
            first = next(iter(_limit_rows(source, _read_tables(source, config, 0, False, Account()))), None)
            if first is None:
                raise UserError(f"listing.path {source.path}: no rows; give a source with at least one")
            if REASON in first.column_names and first[REASON].null_count == 0:
                raise describe_unusable(f"listing.path {source.path}", first, first.num_rows)
        for column in first.schema:
            if column.name not in (REASON, MESSAGE):
                columns.setdefault(column.name, column.type)
    return columns


def describe_unusable(where: str, rows: pa.Table, count: int) -> UserError:
    """Returns the error for ``count`` rows of which none can have an image, with the reason of the first.

    ``where`` names the key of the config, and its value.
    """
    first = rows.slice(0, 1).to_pylist()[0]
    return UserError(
        f"{where}: none of the {count} rows read can be used; {first['url'] or 'the first'}: {first[MESSAGE]}"
    )


def list_rows(
    config: ListingConfig, seed: int, hashes: bool = True, account: Account | None = None
) -> Iterator[pa.Table]:
    """Yields the tables of `read_sources`."""
    for rows in read_sources(config, seed, hashes, account):
        yield rows.table


def read_sources(
    config: ListingConfig, seed: int, hashes: bool = True, account: Account | None = None
) -> Iterator[SourceRows]:
    """Yields all rows, source after source, in tables of bounded size: string columns url and caption first.

    Rows of a folder, of tars, or of tables with the images inside have column `FILE_HASH`, the sha256 of the file that
    the image is read from, null if not ``hashes``. Rows that cannot have an image have `columns.REASON` and
    `columns.MESSAGE`. Of several sources, each row has the name of its own in `SOURCE_COLUMN`. ``account`` gets what
    the sources hold besides.
    Raises UserError, before the first row or at the file concerned, for missing, empty and unreadable input.
    """
    account = account or Account()
    for name, source in config.list_sources().items():
        with _name_source(name):
            pinned = _pin_revision(source)
            for table in _limit_rows(pinned, _read_tables(pinned, config, seed, hashes, account)):
                if name != ONLY_SOURCE:
                    table = table.append_column(SOURCE_COLUMN, pa.array([name] * table.num_rows, pa.string()))
                yield SourceRows(name, table)


def _pin_revision(config: SourceConfig) -> SourceConfig:
    """Returns the source with the commit of a path on a hub, which the download reads images from."""
    if config.path is None:
        return config
    try:
        return config.model_copy(update={"path": storage.pin_revision(config.path)})
    except OSError as error:
        raise UserError(f"listing.path {config.path}: {' '.join(str(error).split())[:300]}; {HUB_REMEDY}") from error


def _limit_rows(config: SourceConfig, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    left = config.limit
    for table in tables:
        if left is not None:
            table = table.slice(0, left)
            left -= table.num_rows
        if table.num_rows:
            yield table
        if left == 0:
            return


def _read_tables(
    config: SourceConfig, whole: ListingConfig, seed: int, hashes: bool, account: Account
) -> Iterator[pa.Table]:
    if config.source == "scenes":
        scenes = normalise_columns(list_scenes(whole.scenes, seed), "url", "caption")
        account.records += scenes.num_rows
        yield scenes
    elif config.source == "folder":
        yield from folder_source.read_tables(config, hashes, account)
    elif config.source == "webdataset":
        yield from tar_source.read_tables(config, hashes, account)
    elif config.source == "dataset":
        yield from dataset_source.read_tables(config, hashes, account)
    else:
        yield from table_source.read_tables(config, hashes, account)


@contextmanager
def _name_source(name: str) -> Iterator[None]:
    """Makes errors name the keys of a source as they are written in the config."""
    try:
        yield
    except UserError as error:
        if name == ONLY_SOURCE:
            raise
        raise UserError(KEY.sub(rf"listing.sources.{name}.\1", str(error))) from error
