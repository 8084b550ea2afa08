"""Existing webdataset tars as a source: a sample is the files of one name, as img2dataset writes them.

The pictures stay where they are until the download stage reads each from its place in the tar; then they go through
the same decoding, checks and encoding as fetched ones, so that nothing downstream has to ask where a picture is from.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from dataprep import storage
from dataprep.decode import IMAGE_EXTENSIONS
from dataprep.schema import UserError
from dataprep.tables import BATCH_ROWS, as_text

CAPTION_EXTENSIONS = ("txt", "caption")
MEMBER_COLUMN = "member"


class Sample(NamedTuple):
    """One sample: its name in the tar, where its picture's bytes are, its caption, and what its JSON says."""

    name: str
    start: int
    end: int
    caption: str | None
    described: dict[str, Any]


def read_samples(path: str, relative: str) -> Iterator[pa.Table]:
    """Yields the samples of the tar at ``path`` in order, in tables of bounded size.

    Columns: url (the picture's place, ``relative``#start-end; start = end for a sample without a picture), caption
    (.txt, else the JSON's; null without), member (the sample's name), then the fields of its .json as text.
    UserError for a file that is no uncompressed tar or is cut off, and for broken JSON.
    """
    fs, inner = storage.filesystem(path)
    try:
        with fs.open(inner, "rb") as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            batch: list[Sample] = []
            for sample in _samples(path, tar):
                batch.append(sample)
                if len(batch) == BATCH_ROWS:
                    yield _table(batch, relative)
                    batch = []
            if batch:
                yield _table(batch, relative)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"listing.path {path}: not readable as an uncompressed tar ({reason}); check the file"
        ) from error


def _samples(path: str, tar: tarfile.TarFile) -> Iterator[Sample]:
    """Groups neighbouring members by their name up to its first dot, as webdataset does."""
    sample: Sample | None = None
    for member in tar:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not member.isfile() or not dot:
            continue
        name = folder + slash + stem
        if sample is None or sample.name != name:
            if sample is not None:
                yield sample
            sample = Sample(name, 0, 0, None, {})
        sample = _with(path, tar, sample, member, extension.rpartition(".")[2].lower())
        tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every header: a large tar would fill memory
    if sample is not None:
        yield sample


def _with(path: str, tar: tarfile.TarFile, sample: Sample, member: tarfile.TarInfo, extension: str) -> Sample:
    """The sample with one more of its files."""
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


def _table(batch: list[Sample], relative: str) -> pa.Table:
    captions = [sample.described.get("caption") if sample.caption is None else sample.caption for sample in batch]
    columns: dict[str, pa.Array] = {
        "url": pa.array([storage.member_path(relative, sample.start, sample.end) for sample in batch], pa.string()),
        "caption": pa.array([as_text(caption) for caption in captions], pa.string()),
        MEMBER_COLUMN: pa.array([sample.name for sample in batch], pa.string()),
    }
    for name in dict.fromkeys(name for sample in batch for name in sample.described):
        values = [as_text(sample.described.get(name)) for sample in batch]
        # The sample's own columns of these names are the picture's place and the caption's file.
        columns[f"source_{name}" if name in columns else name] = pa.array(values, pa.string())
    return pa.table(columns)
