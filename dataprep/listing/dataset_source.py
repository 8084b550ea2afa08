"""A Hugging Face dataset as a source: a folder as the hub or `datasets` stores it, local or ``hf://``.

Its files are tables (Parquet, Arrow, CSV, JSON lines), tars in webdataset's layout, or images with metadata.jsonl or
metadata.csv beside them; they are read as those sources are.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import pyarrow as pa

from dataprep.images.formats import IMAGE_EXTENSIONS
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.listing import folder_source, table_source, tar_source
from dataprep.listing.account import Account
from dataprep.listing.config import SourceConfig
from dataprep.listing.dataset_files import SplitFiles, find_split
from dataprep.listing.files import list_folder
from dataprep.listing.folder_captions import get_extension, is_caption_table
from dataprep.listing.table_reader import table_extension

# Of a repository; other .txt and .json files are notes.
DATA_EXTENSIONS = (".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".ndjson")


def find_files(config: SourceConfig) -> list[str]:
    """Returns every file that the rows or their images are read from. Raises UserError if there is none."""
    kind, config, files = _resolve(config, Account())
    if kind == "folder":
        return folder_source.find_files(config)
    return files


def read_tables(config: SourceConfig, hashes: bool, account: Account) -> Iterator[pa.Table]:
    """Yields the rows of the split in order, in the listing's columns."""
    kind, config, files = _resolve(config, account)
    if kind == "folder":
        yield from folder_source.read_tables(config, hashes, account)
    elif kind == "webdataset":
        yield from tar_source.read_tables(config, hashes, account, files)
    else:
        yield from table_source.read_tables(config, hashes, account, files)


def _resolve(config: SourceConfig, account: Account) -> tuple[str, SourceConfig, list[str]]:
    """Returns the kind of source that the files are, the source as that kind, and its files; none for a folder."""
    assert config.path is not None
    split = find_split(config, account)
    tables = [name for name in split.names if table_extension(name) in DATA_EXTENSIONS]
    tars = [name for name in split.names if name.lower().endswith(".tar")]
    # Beside images a table called metadata has their captions.
    chosen = [name for name in tables if not is_caption_table(name)] or tars
    if not chosen and any(get_extension(name) in IMAGE_EXTENSIONS for name in split.names):
        folder = _find_image_folder(config, split)
        return "folder", config.model_copy(update={"source": "folder", "path": folder}), []
    chosen = chosen or tables
    if not chosen:
        raise UserError(
            f"listing.path {config.path}: the dataset holds no {' '.join(DATA_EXTENSIONS)} .tar and no images; check "
            "the path"
        )
    for name in sorted(set(split.names) - set(chosen)):
        account.name("other_files", name)
    kind = "webdataset" if chosen == tars else "table"
    files = [storage.join(config.path, name) for name in chosen]
    return kind, config.model_copy(update={"source": kind}), files


def _find_image_folder(config: SourceConfig, split: SplitFiles) -> str:
    """Returns the folder that holds the images of a split and nothing of other splits."""
    assert config.path is not None
    inner = posixpath.commonpath([posixpath.dirname(name) for name in split.names])
    folder = storage.join(config.path, inner) if inner else config.path
    own = {posixpath.relpath(name, inner) if inner else name for name in split.names}
    found = {item.name for item in list_folder(folder, Account(), config.hidden_files)}
    if len(split.splits) > 1 and not own.issuperset(found):
        raise UserError(
            f"listing.split {config.split or 'train'}: the images of {', '.join(split.splits)} in {config.path} are in "
            "one folder; give each split a folder"
        )
    return folder
