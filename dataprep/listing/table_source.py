"""Lists of URLs as a source: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from dataprep.listing.columns import CAPTION_NAMES, URL_NAMES, normalise_columns, pick_column
from dataprep.listing.config import ListingConfig
from dataprep.listing.files import find_matching_files
from dataprep.listing.layouts import find_layout
from dataprep.listing.table_reader import EXTENSIONS, read_batches, table_extension


def find_files(config: ListingConfig) -> list[str]:
    """Returns the tables, sorted. Raises UserError if there is none."""
    assert config.path is not None
    return find_matching_files(config.path, lambda name: table_extension(name) is not None, EXTENSIONS)


def read_tables(config: ListingConfig) -> Iterator[pa.Table]:
    """Yields the rows of every table in order, in the listing's columns."""
    for file in find_files(config):
        for table in read_batches(file):
            names = table.column_names
            layout = find_layout(config.layout, names)
            url = pick_column(file, names, config.url_column, layout.url if layout else URL_NAMES, "url_column")
            captions = layout.caption if layout else CAPTION_NAMES
            caption = pick_column(file, names, config.caption_column, captions, "caption_column")
            yield normalise_columns(table, url, caption, layout, file)
