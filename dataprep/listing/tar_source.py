"""Webdataset tars as a source: the files of one sample share a name, as img2dataset writes them.

Images stay in the tar until the download stage reads their byte ranges; then they are decoded, checked and encoded like
fetched images, so that later stages need not know where an image came from.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from dataprep.images.formats import IMAGE_EXTENSIONS
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY
from dataprep.listing.columns import FILE_HASH, normalise_columns, pick_column
from dataprep.listing.config import ListingConfig
from dataprep.listing.files import find_matching_files
from dataprep.listing.layouts import find_layout
from dataprep.listing.table_reader import BATCH_ROWS, convert_to_text

CAPTION_EXTENSIONS = ("txt", "caption")
MEMBER_COLUMN = "member"


class TarSample(NamedTuple):
    """One sample: its name in the tar, the byte range of its image, its caption, and the fields of its JSON."""

    name: str
    start: int
    end: int
    caption: str | None
    described: dict[str, Any]


def find_files(config: ListingConfig) -> list[str]:
    """Returns the tars, sorted. Raises UserError if there is none."""
    assert config.path is not None
    return find_matching_files(config.path, lambda name: name.lower().endswith(".tar"), (".tar",))


def read_tables(config: ListingConfig, hashes: bool) -> Iterator[pa.Table]:
    """Yields the samples of every tar in order; an image's URL is relative to the common folder of all tars."""
    files = find_files(config)
    root = posixpath.commonprefix(files).rpartition("/")[0]
    full = storage.absolute(root)
    for file in files:
        sha256 = storage.sha256_file(file)[0] if hashes else None
        for table in read_samples(file, file[len(root) :].lstrip("/")):
            caption = "caption"
            if config.caption_column is not None:
                caption = pick_column(file, table.column_names, config.caption_column, (), "caption_column")
            layout = find_layout(config.layout, table.column_names)
            listed = normalise_columns(table, "url", caption, layout, file)
            listed = listed.append_column(FILE_HASH, pa.array([sha256] * listed.num_rows, pa.string()))
            yield listed.replace_schema_metadata({ROOT_KEY: full.encode()})


def read_samples(path: str, relative: str) -> Iterator[pa.Table]:
    """Yields the samples of the tar at ``path`` in order, in tables of bounded size.

    Columns: url (``relative``#start-end; start = end for a sample without an image), caption (of the .txt, else of the
    .json, else null), member (name of the sample), then the fields of the .json as text.
    Raises UserError for a compressed, truncated or other file, and for broken JSON.
    """
    fs, inner = storage.filesystem(path)
    try:
        with fs.open(inner, "rb") as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            batch: list[TarSample] = []
            for sample in _group_members(path, tar):
                batch.append(sample)
                if len(batch) == BATCH_ROWS:
                    yield _build_table(batch, relative)
                    batch = []
            if batch:
                yield _build_table(batch, relative)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"listing.path {path}: not readable as an uncompressed tar ({reason}); check the file"
        ) from error


def _group_members(path: str, tar: tarfile.TarFile) -> Iterator[TarSample]:
    """Groups consecutive members by their name up to the first dot, as webdataset does."""
    sample: TarSample | None = None
    for member in tar:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not member.isfile() or not dot:
            continue
        name = folder + slash + stem
        if sample is None or sample.name != name:
            if sample is not None:
                yield sample
            sample = TarSample(name, 0, 0, None, {})
        sample = _add_member(path, tar, sample, member, extension.rpartition(".")[2].lower())
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header: a large tar would fill memory
    if sample is not None:
        yield sample


def _add_member(
    path: str, tar: tarfile.TarFile, sample: TarSample, member: tarfile.TarInfo, extension: str
) -> TarSample:
    """Returns ``sample`` with one more of its files."""
    if extension in IMAGE_EXTENSIONS:
        return sample._replace(start=member.offset_data, end=member.offset_data + member.size)
    if extension not in (*CAPTION_EXTENSIONS, "json"):
        return sample
    file = tar.extractfile(member)
    assert file is not None, member.name
    data = file.read()
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    if extension in CAPTION_EXTENSIONS:
        return sample._replace(caption=data.decode("utf-8", errors="replace").strip())
    try:
        described = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"listing.path {path}: {member.name} is not JSON ({error}); write the tar again") from error
    if not isinstance(described, dict):
        raise UserError(f"listing.path {path}: {member.name} is not a JSON object; write the tar again")
    return sample._replace(described=described)


def _build_table(batch: list[TarSample], relative: str) -> pa.Table:
    captions = [sample.described.get("caption") if sample.caption is None else sample.caption for sample in batch]
    columns: dict[str, pa.Array] = {
        "url": pa.array([storage.member_path(relative, sample.start, sample.end) for sample in batch], pa.string()),
        "caption": pa.array([convert_to_text(caption) for caption in captions], pa.string()),
        MEMBER_COLUMN: pa.array([sample.name for sample in batch], pa.string()),
    }
    for name in dict.fromkeys(name for sample in batch for name in sample.described):
        values = [convert_to_text(sample.described.get(name)) for sample in batch]
        # The columns of these names hold the byte range of the image and the caption file.
        columns[f"source_{name}" if name in columns else name] = pa.array(values, pa.string())
    return pa.table(columns)
