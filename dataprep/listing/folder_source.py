"""A folder of images as a source: one row per image, with the caption beside it or from captions tables.

Captions whose image is missing are rows too, with a reason, so that nothing is lost in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from dataprep.images.formats import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS, describe_unread, is_photo
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY
from dataprep.listing.account import Account
from dataprep.listing.captions import Captions, build_caption_columns
from dataprep.listing.columns import FILE_HASH, add_reasons
from dataprep.listing.config import SourceConfig
from dataprep.listing.files import NOT_REGULAR, Found, list_folder
from dataprep.listing.folder_captions import (
    CAPTION_SUFFIXES,
    CaptionFiles,
    get_extension,
    is_caption_table,
    normalise_name,
    read_caption_tables,
)
from dataprep.listing.read_options import BATCH_ROWS, ReadOptions
from dataprep.listing.table_reader import table_extension

HEAD = 16  # bytes by which an image under another name is known


class FolderFiles(NamedTuple):
    """The files of a folder by what they are, relative to it, each kind sorted. Those with a problem are included."""

    images: list[Found]
    captions: list[Found]
    tables: list[Found]
    others: list[Found]


class FolderRow(NamedTuple):
    """A row to be: the image's or caption's name, its captions, and why it has no image, if so."""

    name: str
    captions: Captions
    reason: str | None = None
    message: str | None = None


def classify_files(config: SourceConfig, account: Account) -> FolderFiles:
    """Lists the files of the folder. Raises UserError if there is no image."""
    assert config.path is not None
    path = config.path
    fs, inner = storage.filesystem(path)
    if not fs.isdir(inner):
        raise UserError(f"listing.path {path}: no such folder; check the path")
    files = FolderFiles([], [], [], [])
    for item in list_folder(path, account, config.hidden_files):
        extension = get_extension(item.name)
        if extension in IMAGE_EXTENSIONS or extension in UNREAD_EXTENSIONS:
            files.images.append(item)
        elif is_caption_table(item.name):
            files.tables.append(item)
        elif f".{extension}" in CAPTION_SUFFIXES:
            files.captions.append(item)
        elif table_extension(item.name) is None and item.problem is None and is_photo(_read_head(path, item.name)):
            files.images.append(item)
        else:
            files.others.append(item)
    _return_captions(files)
    if not files.images:
        raise UserError(f"listing.path {path}: no image ({' '.join(IMAGE_EXTENSIONS)}) in the folder; check the path")
    return files


def _return_captions(files: FolderFiles) -> None:
    """Takes ``labels.txt`` for the caption of ``labels.jpg`` where there is one, and for a table elsewhere."""
    stems = {normalise_name(item.name.rpartition(".")[0]) for item in files.images}
    for item in [item for item in files.tables if f".{get_extension(item.name)}" in CAPTION_SUFFIXES]:
        if normalise_name(item.name.rpartition(".")[0]) in stems:
            files.tables.remove(item)
            files.captions.append(item)
    files.captions.sort()


def _read_head(path: str, name: str) -> bytes:
    fs, inner = storage.filesystem(storage.join(path, name))
    try:
        return bytes(fs.cat_file(inner, start=0, end=HEAD))
    except (OSError, ValueError):
        return b""


def find_files(config: SourceConfig) -> list[str]:
    """Returns the images and caption files below the folder, sorted, also those that cannot be read.

    Raises UserError if there is no image.
    """
    assert config.path is not None
    files = classify_files(config, Account())
    # Opening a pipe would wait for ever.
    found = [item for item in files.images + files.captions + files.tables if item.problem != NOT_REGULAR]
    return [storage.join(config.path, item.name) for item in sorted(found)]


def read_tables(config: SourceConfig, hashes: bool, account: Account) -> Iterator[pa.Table]:
    """Yields one row per image below the folder, sorted by path, then the captions without an image.

    Without ``hashes`` the file hash is null.
    """
    assert config.path is not None
    root = storage.absolute(config.path)
    files = classify_files(config, account)
    for item in files.others:
        account.name("other_files" if item.problem is None else "unreadable", item.name)
    rows = _match_captions(config, root, files, account)
    account.records += len(rows)
    if not any(row.captions.texts for row in rows):
        raise UserError(
            f"listing.path {config.path}: no image has a caption; put name.txt beside name.jpg, or a "
            "captions.csv with columns file_name and caption into the folder"
        )
    account.count("several_captions", sum(len(row.captions.texts) > 1 for row in rows))
    for start in range(0, len(rows), BATCH_ROWS):
        yield _build_table(rows[start : start + BATCH_ROWS], root, hashes)


def _match_captions(config: SourceConfig, root: str, files: FolderFiles, account: Account) -> list[FolderRow]:
    names = tuple(name for name in (config.caption_column,) if name is not None)
    options = ReadOptions(config.encoding, config.quotes, names, account)
    for item in files.tables:
        if item.problem:
            raise UserError(f"listing.path {storage.join(root, item.name)}: {item.problem}; repair or remove it")
    images = [item.name for item in files.images]
    listed, lost = read_caption_tables(config, root, [item.name for item in files.tables], images, options)
    beside = CaptionFiles(root, [item.name for item in files.captions], images, config.encoding, account)
    problems = {item.name: item.problem for item in files.captions if item.problem}
    rows = []
    for item in files.images:
        file = beside.find(item.name)
        captions = listed.get(item.name)
        if file is not None and not (captions and captions.texts):
            captions = Captions([], f"{file}: {problems[file]}") if file in problems else beside.read(file)
        rows.append(_make_row(root, item, captions or Captions([])))
    for name in sorted(beside.matched - beside.used):
        account.name("other_captions", name)
    for item in files.captions:
        if item.name in beside.matched:
            continue
        if get_extension(item.name) == "json":
            account.name("other_files", item.name)
        else:
            rows.append(FolderRow(item.name, Captions([]), "incomplete", "a caption file without an image"))
    rows += [FolderRow(line.file, line.captions, "incomplete", line.problem) for line in lost]
    return rows


def _make_row(root: str, item: Found, captions: Captions) -> FolderRow:
    if item.problem is not None:
        return FolderRow(item.name, captions, "file", item.problem)
    extension = get_extension(item.name)
    if extension in UNREAD_EXTENSIONS and (unread := describe_unread(extension, _read_head(root, item.name))):
        return FolderRow(item.name, captions, "not_image", unread)
    if captions.problem:
        return FolderRow(item.name, captions, "text", captions.problem)
    return FolderRow(item.name, captions)


def _build_table(rows: Sequence[FolderRow], root: str, hashes: bool) -> pa.Table:
    hashed = [_hash_file(root, row) if hashes else (row, None) for row in rows]
    columns = {"url": pa.array([row.name for row in rows], pa.string())}
    columns |= build_caption_columns([row.captions for row in rows])
    columns[FILE_HASH] = pa.array([sha256 for _, sha256 in hashed], pa.string())
    table = add_reasons(pa.table(columns), [row.reason for row, _ in hashed], [row.message for row, _ in hashed])
    return table.replace_schema_metadata({ROOT_KEY: root.encode()})


def _hash_file(root: str, row: FolderRow) -> tuple[FolderRow, str | None]:
    """Returns the row with the hash of its image file, or with a reason if that cannot be read."""
    if row.reason not in (None, "text", "not_image"):
        return row, None
    try:
        return row, storage.sha256_file(storage.join(root, row.name))[0]
    except OSError as error:
        return row._replace(reason="file", message=f"not readable: {error.strerror or type(error).__name__}"), None
