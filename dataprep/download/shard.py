"""Downloads a listing shard to a tar and a Parquet file in img2dataset's layout; the same input gives the same bytes.

``00000.tar`` holds ``{key}.jpg|png|webp``, ``{key}.txt`` and ``{key}.json`` of successful rows; ``00000.parquet`` has
all rows, failed ones with their reason.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple

import cv2
import pyarrow as pa

from dataprep.download.address_guard import Hosts
from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.fetch import Fetched, fetch_each
from dataprep.download.hash_lists import HashLists
from dataprep.download.robots import PolicyMemory
from dataprep.download.tar_writer import TarWriter
from dataprep.images.formats import is_image
from dataprep.images.store import store_image
from dataprep.io import storage
from dataprep.io.failure_reasons import REASONS, STATUSES, SUCCESS, TRANSIENT, FailedError
from dataprep.io.keys import SAMPLE_DIGITS, sample_key, shard_name
from dataprep.io.parquet import ROOT_KEY, read_table, write_table
from dataprep.io.parquet_cells import CellReader, is_cell

SPOOL = 64 << 20  # bytes of finished images kept in memory; the rest is on disk
MEMBERS = 3  # tar members per sample
Process = Callable[[Fetched], tuple[dict[str, Any], bytes | None]]
_describe = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str).encode
MEASURED = ("width", "height", "original_width", "original_height", "original_bytes", "sha256")


class PreviousPass(NamedTuple):
    """The tar and Parquet file of an earlier pass over the same listing shard."""

    tar: str | Path
    parquet: str | Path


class RowResult(NamedTuple):
    """One row's columns, and the (offset, length) of its image in the spool; None if it is not there."""

    row: dict[str, Any]
    place: tuple[int, int] | None


def download_shard(
    listing_path: str | Path,
    shard_index: int,
    out_dir: str | Path,
    config: DownloadConfig,
    hosts: Hosts | None = None,
    *,
    forgotten: frozenset[str] = frozenset(),
    previous: PreviousPass | None = None,
    memory: PolicyMemory | None = None,
    hash_lists: HashLists | None = None,
) -> dict[str, int]:
    """Downloads one listing shard into ``out_dir``. Rows of a folder or tar listing are read from their files.

    Args:
        hosts: maps host names to a fixed (address, port).
        forgotten: sha256 in hex of stored images to leave out.
        previous: an earlier pass; its rows are copied byte for byte, except transient failures, which are tried again.
        memory: policies of sites known from earlier shards.
        hash_lists: images to refuse; those of ``config`` if None.

    Returns:
        Counters: rows, bytes, one per status and one per reason that occurs; with ``previous`` their changes.

    Raises:
        OSError: ``out_dir`` cannot be written. Failures of a URL never raise.
    """
    listing = read_table(listing_path, "listing")
    if listing.num_rows > 10**SAMPLE_DIGITS:
        raise ValueError(f"{listing_path}: {listing.num_rows} rows, a shard holds at most {10**SAMPLE_DIGITS}")
    taken = _select_rows_to_copy(previous, listing)
    tar_path = Path(out_dir) / shard_name(shard_index, "tar")
    with SpooledTemporaryFile(SPOOL, dir=str(out_dir)) as spool:
        lists = HashLists.read(config.hash_lists) if hash_lists is None else hash_lists
        work = _make_processor(config, forgotten, lists)
        found = _fetch_rows(listing, config, hosts or {}, work, spool, taken, memory)
        found |= {index: RowResult(row, None) for index, row in taken.items()}
        rows = _write_tar(tar_path, listing, shard_index, found, spool, config, previous)
    write_table(_build_table(rows, listing), tar_path.with_suffix(".parquet"), "download")
    counters = _count_rows(rows) | {"bytes": tar_path.stat().st_size}
    if previous is None:
        return counters
    before = _count_rows(read_table(previous.parquet, "download", ["status", "reason"]).to_pylist())
    before["bytes"] = Path(previous.tar).stat().st_size
    changed = {name: counters.get(name, 0) - before.get(name, 0) for name in {**counters, **before}}
    return {"retried": listing.num_rows - len(taken)} | {name: by for name, by in sorted(changed.items()) if by}


def count_transient_failures(parquet_path: str | Path) -> int:
    """Counts the rows of a download shard that another pass would try again."""
    reasons = Counter(read_table(parquet_path, "download", ["reason"])["reason"].to_pylist())
    return sum(count for reason, count in reasons.items() if reason in TRANSIENT)


def _count_rows(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows:
        statuses[row["status"]] += 1
        if row["reason"] is not None:
            reasons[row["reason"]] += 1
    counted = {"rows": statuses.total(), "bytes": 0} | {status: statuses[status] for status in STATUSES}
    return counted | {reason: reasons[reason] for reason in REASONS if reasons[reason]}


def _select_rows_to_copy(previous: PreviousPass | None, listing: pa.Table) -> dict[int, dict[str, Any]]:
    """Returns the rows of ``previous`` to copy, by index."""
    if previous is None:
        return {}
    table = read_table(previous.parquet, "download")
    if table["url"].to_pylist() != listing["url"].to_pylist():
        raise ValueError(f"{previous.parquet}: not of this listing shard; download it again")
    columns = table.select([name for name in table.column_names if name in _TYPES])
    return {index: row for index, row in enumerate(columns.to_pylist()) if row["reason"] not in TRANSIENT}


def _fetch_rows(
    listing: pa.Table,
    config: DownloadConfig,
    hosts: Hosts,
    work: Process,
    spool: IO[bytes],
    skip: dict[int, Any],
    memory: PolicyMemory | None,
) -> dict[int, RowResult]:
    """Fetches and processes every row that is not in ``skip``; images go to ``spool`` in order of completion."""
    urls = {index: url or "" for index, url in enumerate(listing["url"].to_pylist()) if index not in skip}
    failed = _find_failed_rows(listing)
    found = {index: RowResult(_build_failed_row(*why), None) for index, why in failed.items() if index in urls}
    wanted = [index for index in urls if index not in failed]

    def store(place: int, done: tuple[dict[str, Any], bytes | None]) -> None:
        row, image = done
        offset = spool.tell()
        if image is not None:
            spool.write(image)
        found[wanted[place]] = RowResult(row, None if image is None else (offset, len(image)))

    root = (listing.schema.metadata or {}).get(ROOT_KEY)
    if root is None:
        each = (urls[index] for index in wanted)
        fetch_each(each, store, work, config.fetch, hosts, accept=is_image, memory=memory)
    else:
        for place, fetched in enumerate(read_files(root.decode(), (urls[index] for index in wanted), config.fetch)):
            store(place, work(fetched))
    return found


def _find_failed_rows(listing: pa.Table) -> dict[int, tuple[str, str]]:
    """Returns (reason, details) by index of the rows that the listing gives a reason, and of forgotten ones."""
    failed = {index: ("forgotten", "forgotten") for index, url in enumerate(listing["url"].to_pylist()) if not url}
    if "reason" in listing.column_names:
        given = zip(listing["reason"].to_pylist(), listing["error_message"].to_pylist(), strict=True)
        failed |= {index: (reason, text or "") for index, (reason, text) in enumerate(given) if reason is not None}
    return failed


def read_files(root: str, names: Iterable[str], config: FetchConfig) -> Iterator[Fetched]:
    """Reads files below the folder ``root``, with the limits and results of fetched URLs."""
    with closing(CellReader()) as cells:
        for name in names:
            if name.startswith("/") or ".." in name.split("/"):
                yield Fetched(None, "file", "path leads out of the folder")
                continue
            path = storage.join(root, name)
            try:
                inside = cells.read(path) if is_cell(path) else None
                size = storage.size(path) if inside is None else len(inside)
                too_long = (size or 0) > config.max_bytes
                body = b"" if too_long else storage.read_bytes(path) if inside is None else inside
            except OSError as error:
                yield Fetched(None, "file", f"file not readable: {type(error).__name__}")
                continue
            yield Fetched(None, "too_large", f"body above {config.max_bytes} bytes") if too_long else Fetched(body)


def _build_failed_row(reason: str, text: str) -> dict[str, Any]:
    """Returns the download columns of a row without an image."""
    row: dict[str, Any] = {"status": REASONS[reason].status, "reason": reason, "error_message": text}
    return row | dict.fromkeys(MEASURED)


def _make_processor(config: DownloadConfig, forgotten: frozenset[str], hash_lists: HashLists) -> Process:
    """Returns the thread-safe function from a body to a row's columns and the image to store."""
    cv2.setNumThreads(1)  # work is parallel over images

    def work(fetched: Fetched) -> tuple[dict[str, Any], bytes | None]:
        if fetched.body is None:
            return _build_failed_row(fetched.reason or "bad_response", fetched.error or ""), None
        try:
            hash_lists.check_file(fetched.body)
            stored = store_image(fetched.body, config, hash_lists.check_pixels)
        except FailedError as error:
            return _build_failed_row(error.reason, str(error)), None
        sha256 = hashlib.sha256(stored.data).hexdigest()
        if sha256 in forgotten:
            return _build_failed_row("forgotten", "forgotten"), None
        sizes = (stored.width, stored.height, stored.original_width, stored.original_height, len(fetched.body))
        row = {"status": SUCCESS, "reason": None, "error_message": None}
        return row | dict(zip(MEASURED, (*sizes, sha256), strict=True)), stored.data

    return work


def _write_tar(
    tar_path: Path,
    listing: pa.Table,
    shard_index: int,
    found: dict[int, RowResult],
    spool: IO[bytes],
    config: DownloadConfig,
    previous: PreviousPass | None,
) -> list[dict[str, Any]]:
    """Writes the samples in listing order; returns the download columns of every row."""
    rows = []
    with ExitStack() as stack:
        tar = stack.enter_context(TarWriter(tar_path))
        old = stack.enter_context(tarfile.open(previous.tar, "r|")) if previous is not None else None
        for index, source in enumerate(_iterate_rows(listing)):
            key = sample_key(shard_index, index)
            measured, place = found[index]
            row = {"key": key, "url": source.pop("url"), "caption": source.pop("caption")} | measured
            source = {name: value for name, value in source.items() if name not in row}
            rows.append(row)
            if row["status"] != SUCCESS:
                continue
            if place is None:
                assert old is not None, key
                _copy_sample(old, tar, key)
                continue
            spool.seek(place[0])
            tar.add(f"{key}.{config.encode_format}", spool.read(place[1]))
            tar.add(f"{key}.txt", (row["caption"] or "").encode())
            tar.add(f"{key}.json", _describe(row | source).encode())
    return rows


def _copy_sample(old: tarfile.TarFile, tar: TarWriter, key: str) -> None:
    """Copies a sample's files from an earlier tar, which is read in the same order."""
    for _ in range(MEMBERS):
        member = old.next()
        if member is None or member.name.partition(".")[0] != key:
            raise ValueError(f"the earlier tar holds no complete sample {key}; download the shard again")
        file = old.extractfile(member)
        assert file is not None, member.name
        tar.add(member.name, file.read())


def _iterate_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


_TEXT, _WHOLE = pa.string(), pa.int32()
_TYPES = {"key": _TEXT, "url": _TEXT, "caption": _TEXT, "status": _TEXT, "reason": _TEXT, "error_message": _TEXT}
_TYPES |= {"width": _WHOLE, "height": _WHOLE, "original_width": _WHOLE, "original_height": _WHOLE}
_TYPES |= {"original_bytes": pa.int64(), "sha256": _TEXT}


def _build_table(rows: list[dict[str, Any]], listing: pa.Table) -> pa.Table:
    """Returns the download columns of all rows, followed by the listing's other columns."""
    table = pa.Table.from_pylist(rows, schema=pa.schema(_TYPES))
    for name in listing.column_names:
        if name not in _TYPES:
            table = table.append_column(listing.schema.field(name), listing[name])
    return table
