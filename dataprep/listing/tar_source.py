"""Webdataset tars as a source: the files of one sample share a name, as img2dataset writes them.

Images stay in the tar until the download stage reads their byte ranges; then they are decoded, checked and encoded like
fetched images, so that later stages need not know where an image came from.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import pyarrow as pa

from dataprep.images.formats import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS, describe_unread
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY
from dataprep.listing.account import Account
from dataprep.listing.captions import find_caption
from dataprep.listing.columns import FILE_HASH, add_reasons, normalise_columns, pick_column
from dataprep.listing.config import SourceConfig
from dataprep.listing.files import find_matching_files
from dataprep.listing.json_tables import build_json_batch
from dataprep.listing.layouts import find_layout
from dataprep.listing.read_options import BATCH_ROWS
from dataprep.listing.tar_samples import Place, Sample, find_scattered, group_members
from dataprep.listing.text_decoding import DecodingError, decode_text

CAPTION_EXTENSIONS = ("txt", "caption", "text")  # best first
IMAGES = (*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS)  # best first
MEMBER_COLUMN = "member"


class TarRow(NamedTuple):
    """One sample as a row.

    ``image`` is an empty range if the sample has none. ``reason`` and ``message`` say why it cannot be used, if so.
    """

    name: str
    image: Place
    caption: Any  # text, a list of texts, or None
    described: dict[str, Any]  # the fields of its JSON
    reason: str | None = None
    message: str | None = None


def find_files(config: SourceConfig, account: Account | None = None) -> list[str]:
    """Returns the tars, sorted. Raises UserError if there is none."""
    assert config.path is not None

    def is_tar(name: str) -> bool:
        return name.lower().endswith(".tar")

    return find_matching_files(config.path, [(is_tar, (".tar",))], account, config.hidden_files)


def read_tables(
    config: SourceConfig, hashes: bool, account: Account, files: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yields the samples of every tar in order; an image's URL is relative to the common folder of all tars.

    ``files`` None: the tars of the path.
    """
    files = files or find_files(config, account)
    root = posixpath.commonprefix(files).rpartition("/")[0]
    full = storage.absolute(root)
    for file in files:
        relative = file[len(root) :].lstrip("/")
        sha256 = storage.sha256_file(file)[0] if hashes else None
        for rows in _read_rows(file, relative, config, account):
            listed = _build_table(rows, file, relative, config, account)
            listed = listed.append_column(FILE_HASH, pa.array([sha256] * listed.num_rows, pa.string()))
            yield listed.replace_schema_metadata({ROOT_KEY: full.encode()})


def _read_rows(path: str, relative: str, config: SourceConfig, account: Account) -> Iterator[list[TarRow]]:
    """Yields the samples of the tar at ``path`` in order, in lists of bounded size.

    Raises UserError for a compressed, truncated or other file.
    """
    fs, inner = storage.filesystem(path)
    try:
        with fs.open(inner, "rb") as handle:
            with tarfile.open(fileobj=handle, mode="r:") as tar:
                scattered = find_scattered(tar)
            handle.seek(0)
            with tarfile.open(fileobj=handle, mode="r:") as tar:
                rows: list[TarRow] = []
                for sample in group_members(tar, scattered, relative, account, config.hidden_files):
                    account.records += 1
                    rows.append(_read_sample(sample, handle, relative, config, account))
                    if len(rows) == BATCH_ROWS:
                        yield rows
                        rows = []
                if rows:
                    yield rows
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"listing.path {path}: not readable as an uncompressed tar ({reason}); check the file"
        ) from error


def _read_sample(sample: Sample, handle: IO[bytes], relative: str, config: SourceConfig, account: Account) -> TarRow:
    members = sample.members
    first = min(place.start for place in members.values())
    image = choose_image(members, config.image_member)
    for extension in members:
        if extension != image and extension.rpartition(".")[2] in IMAGES:
            account.name("other_images", f"{relative}: {sample.name}.{extension}")
    row = TarRow(sample.name, members[image] if image else Place(first, first), None, {})
    try:
        row = row._replace(described=_read_described(members, handle, config.encoding))
        row = row._replace(caption=_read_caption(sample, handle, relative, config, row.described, account))
    except DecodingError as error:
        row = row._replace(reason="text", message=f"{sample.name}{error}")
    if image is None:
        wanted = f"no {config.image_member}" if config.image_member else "no image"
        hint = "; set listing.image_member to one of them if it is the image" if not config.image_member else ""
        problem = f"the sample has {wanted}, only {', '.join(members)}{hint}"
        row = row._replace(
            reason=row.reason or "incomplete", message=", and ".join(filter(None, (row.message, problem)))
        )
    elif image in UNREAD_EXTENSIONS and (unread := describe_unread(image, _read_member(handle, row.image)[:16])):
        row = row._replace(reason="not_image", message=unread)
    return row


def choose_image(members: dict[str, Place], wanted: str | None) -> str | None:
    """Returns the extension of a sample's image, None if it has none.

    Without ``wanted`` it is a plain extension, best first: ``seg.png`` may be a mask of ``jpg``, and is none.
    """
    if wanted is not None:
        return wanted.lower().lstrip(".") if wanted.lower().lstrip(".") in members else None
    return next((extension for extension in IMAGES if extension in members), None)


def _read_member(handle: IO[bytes], place: Place) -> bytes:
    handle.seek(place.start)
    data = handle.read(place.end - place.start)
    if len(data) < place.end - place.start:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _read_described(members: dict[str, Place], handle: IO[bytes], encoding: str | None) -> dict[str, Any]:
    """Returns the fields of the sample's JSON. Raises DecodingError if it is no JSON object."""
    if "json" not in members:
        return {}
    try:
        described = json.loads(decode_text(_read_member(handle, members["json"]), encoding)[0])
    except DecodingError as error:
        raise DecodingError(f".json is not readable ({error}); set listing.encoding") from error
    except (ValueError, RecursionError) as error:
        raise DecodingError(f".json is not JSON ({error}); write the tar again") from error
    if not isinstance(described, dict):
        raise DecodingError(".json is not a JSON object; write the tar again")
    return described


def _read_caption(
    sample: Sample,
    handle: IO[bytes],
    relative: str,
    config: SourceConfig,
    described: dict[str, Any],
    account: Account,
) -> Any:
    """Returns the caption: a file's, else the first of the usual fields of the JSON that has one."""
    wanted = (config.caption_member.lower().lstrip("."),) if config.caption_member else CAPTION_EXTENSIONS
    given = [extension for extension in wanted if extension in sample.members]
    for extension in (item for item in CAPTION_EXTENSIONS if item in sample.members and item not in given[:1]):
        account.name("other_captions", f"{relative}: {sample.name}.{extension}")
    if given:
        try:
            text, guessed = decode_text(_read_member(handle, sample.members[given[0]]), config.encoding)
        except DecodingError as error:
            raise DecodingError(f".{given[0]} is not readable ({error}); set listing.encoding") from error
        if guessed:
            account.name("windows_1252", f"{relative}: {sample.name}.{given[0]}")
        if text.strip():
            return text.strip()
    return find_caption(described)


def _build_table(rows: list[TarRow], file: str, relative: str, config: SourceConfig, account: Account) -> pa.Table:
    described = build_json_batch([row.described for row in rows])
    urls = [storage.member_path(relative, *row.image) for row in rows]
    columns: dict[str, Any] = {
        "url": pa.array(urls, pa.string()),
        "caption": pa.nulls(len(rows), pa.string()),
        MEMBER_COLUMN: pa.array([row.name for row in rows], pa.string()),
    }
    for name in described.table.column_names:
        # The columns of these names hold the byte range of the image and the caption file.
        columns[f"source_{name}" if name in columns else name] = described.table[name]
    table = pa.table(columns)
    values: Any = [row.caption for row in rows]
    caption = "caption"
    if config.caption_column is not None:
        caption = pick_column(file, table.column_names, config.caption_column, (), "caption_column")
        values = values if caption == "caption" else described.values.get(caption)
    layout = find_layout(config.layout, table.column_names)
    listed = normalise_columns(table, "url", caption, layout, file, values=values, account=account)
    return add_reasons(listed, [row.reason for row in rows], [row.message for row in rows])
