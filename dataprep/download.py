"""From a listing shard to a download shard in img2dataset's layout, byte-identical when run again on the same bytes.

``{i:05d}.tar`` holds ``{key}.jpg|png|webp``, ``{key}.txt`` and ``{key}.json`` of the successes; ``{i:05d}.parquet`` has
every row, failures with their reason. Key format and layout are img2dataset's.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple

import cv2
import pyarrow as pa
from pydantic import Field

from dataprep import storage
from dataprep.decode import is_image
from dataprep.fetch import FetchConfig, Fetched, fetch_each
from dataprep.guard import Hosts
from dataprep.reasons import REASONS, STATUSES, SUCCESS, TRANSIENT, FailedError
from dataprep.resize import StoreConfig, store_image
from dataprep.robots import PolicyMemory
from dataprep.schema import SAMPLE_DIGITS, read_table, sample_key, write_table
from dataprep.sources import ROOT_KEY

SPOOL = 64 << 20  # bytes of finished images that are kept in memory, the rest on disk
MEMBERS = 3  # files of a sample in the tar
MEASURED = ("width", "height", "original_width", "original_height", "original_bytes", "sha256")


class DownloadConfig(StoreConfig):
    """How images are fetched and stored."""

    fetch: FetchConfig = Field(default=FetchConfig(), description="how URLs are fetched")
    retry_failed: int = Field(
        default=0,
        ge=0,
        le=999,
        description="further passes over the rows that failed for reasons that can pass, when all else is done; "
        "raised in a finished run, only those rows are asked again",
    )


class Previous(NamedTuple):
    """An earlier pass over the same listing shard: its tar and its Parquet file."""

    tar: str | Path
    parquet: str | Path


class Outcome(NamedTuple):
    """One row's columns, and its image where it lies in the spool: (offset, length); None where it is not there."""

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
    previous: Previous | None = None,
    memory: PolicyMemory | None = None,
) -> dict[str, int]:
    """Downloads one listing shard into ``out_dir``; counters rows, bytes, one a status and one a reason that occurs.

    Args:
        hosts: sends host names to a fixed (address, port). Rows of a folder listing are read from that folder.
        forgotten: sha256 in hex of stored images that are not to be taken up again.
        previous: rows that it holds as a success, or as failed for good, are taken over byte for byte; the others are
            asked again, and the counters are what changed.
        memory: what sites allow, as known from the shards before.

    Raises:
        OSError: ``out_dir`` cannot be written. What a URL does never raises.
    """
    listing = read_table(listing_path, "listing")
    if listing.num_rows > 10**SAMPLE_DIGITS:
        raise ValueError(f"{listing_path}: {listing.num_rows} rows, a shard holds at most {10**SAMPLE_DIGITS}")
    taken = _taken_over(previous, listing)
    tar_path = Path(out_dir) / f"{shard_index:05d}.tar"
    with SpooledTemporaryFile(SPOOL, dir=str(out_dir)) as spool:
        found = _gather(listing, config, hosts or {}, forgotten, spool, taken, memory)
        found |= {index: Outcome(row, None) for index, row in taken.items()}
        rows = _write_tar(tar_path, listing, shard_index, found, spool, config, previous)
    write_table(_download_table(rows, listing), tar_path.with_suffix(".parquet"), "download")
    counters = _count(rows) | {"bytes": tar_path.stat().st_size}
    if previous is None:
        return counters
    before = _count(read_table(previous.parquet, "download", ["status", "reason"]).to_pylist())
    before["bytes"] = Path(previous.tar).stat().st_size
    changed = {name: counters.get(name, 0) - before.get(name, 0) for name in {**counters, **before}}
    return {"retried": listing.num_rows - len(taken)} | {name: by for name, by in sorted(changed.items()) if by}


def transient_failures(parquet_path: str | Path) -> int:
    """Rows of a download shard that another pass would ask for again."""
    reasons = Counter(read_table(parquet_path, "download", ["reason"])["reason"].to_pylist())
    return sum(count for reason, count in reasons.items() if reason in TRANSIENT)


def _count(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows:
        statuses[row["status"]] += 1
        if row["reason"] is not None:
            reasons[row["reason"]] += 1
    counted = {"rows": statuses.total(), "bytes": 0} | {status: statuses[status] for status in STATUSES}
    return counted | {reason: reasons[reason] for reason in REASONS if reasons[reason]}


def _taken_over(previous: Previous | None, listing: pa.Table) -> dict[int, dict[str, Any]]:
    """The rows of ``previous`` that stand, by their index."""
    if previous is None:
        return {}
    table = read_table(previous.parquet, "download")
    if table["url"].to_pylist() != listing["url"].to_pylist():
        raise ValueError(f"{previous.parquet}: not of this listing shard; download it anew")
    columns = table.select([name for name in table.column_names if name in _TYPES])
    return {index: row for index, row in enumerate(columns.to_pylist()) if row["reason"] not in TRANSIENT}


def _gather(
    listing: pa.Table,
    config: DownloadConfig,
    hosts: Hosts,
    forgotten: frozenset[str],
    spool: IO[bytes],
    skip: dict[int, Any],
    memory: PolicyMemory | None,
) -> dict[int, Outcome]:
    """Fetches and processes every row that is not in ``skip``; images go to ``spool`` in the order they get done."""
    urls = {index: url or "" for index, url in enumerate(listing["url"].to_pylist()) if index not in skip}
    found = {index: Outcome(_failed("forgotten", "forgotten"), None) for index, url in urls.items() if not url}
    wanted = [index for index, url in urls.items() if url]

    def store(place: int, done: tuple[dict[str, Any], bytes | None]) -> None:
        row, image = done
        offset = spool.tell()
        if image is not None:
            spool.write(image)
        found[wanted[place]] = Outcome(row, None if image is None else (offset, len(image)))

    work = _processor(config, forgotten)
    root = (listing.schema.metadata or {}).get(ROOT_KEY)
    if root is None:
        each = (urls[index] for index in wanted)
        fetch_each(each, store, work, config.fetch, hosts, accept=is_image, memory=memory)
    else:
        for place, fetched in enumerate(read_files(root.decode(), (urls[index] for index in wanted), config.fetch)):
            store(place, work(fetched))
    return found


def read_files(root: str, names: Iterable[str], config: FetchConfig) -> Iterator[Fetched]:
    """Reads files below the folder ``root`` as URLs are fetched: the same limits, the same result."""
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            yield Fetched(None, "file", "path leads out of the folder")
            continue
        path = storage.join(root, name)
        try:
            too_long = (storage.size(path) or 0) > config.max_bytes
            body = b"" if too_long else storage.read_bytes(path)
        except OSError as error:
            yield Fetched(None, "file", f"file not readable: {type(error).__name__}")
            continue
        yield Fetched(None, "too_large", f"body above {config.max_bytes} bytes") if too_long else Fetched(body)


def _failed(reason: str, text: str) -> dict[str, Any]:
    """The download columns of a row without an image."""
    row: dict[str, Any] = {"status": REASONS[reason].status, "reason": reason, "error_message": text}
    return row | dict.fromkeys(MEASURED)


def _processor(
    config: DownloadConfig, forgotten: frozenset[str]
) -> Callable[[Fetched], tuple[dict[str, Any], bytes | None]]:
    """What turns a body into a row's columns and the image as it will be stored; safe in several threads."""
    cv2.setNumThreads(1)  # the parallel work is over images

    def work(fetched: Fetched) -> tuple[dict[str, Any], bytes | None]:
        if fetched.body is None:
            return _failed(fetched.reason or "bad_response", fetched.error or ""), None
        try:
            stored = store_image(fetched.body, config)
        except FailedError as error:
            return _failed(error.reason, str(error)), None
        sha256 = hashlib.sha256(stored.data).hexdigest()
        if sha256 in forgotten:
            return _failed("forgotten", "forgotten"), None
        sizes = (stored.width, stored.height, stored.original_width, stored.original_height, len(fetched.body))
        row = {"status": SUCCESS, "reason": None, "error_message": None}
        return row | dict(zip(MEASURED, (*sizes, sha256), strict=True)), stored.data

    return work


def _write_tar(
    tar_path: Path,
    listing: pa.Table,
    shard_index: int,
    found: dict[int, Outcome],
    spool: IO[bytes],
    config: DownloadConfig,
    previous: Previous | None,
) -> list[dict[str, Any]]:
    """Writes the samples in listing order; returns the download columns of every row."""
    rows = []
    with ExitStack() as stack:
        tar = stack.enter_context(tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT))
        old = stack.enter_context(tarfile.open(previous.tar, "r|")) if previous is not None else None
        for index, source in enumerate(_iterate(listing)):
            key = sample_key(shard_index, index)
            measured, place = found[index]
            row = {"key": key, "url": source.pop("url"), "caption": source.pop("caption")} | measured
            rows.append(row)
            if row["status"] != SUCCESS:
                continue
            if place is None:
                assert old is not None, key
                _copy(old, tar, key)
                continue
            spool.seek(place[0])
            described = json.dumps(row | source, ensure_ascii=False, sort_keys=True, default=str)
            _add(tar, f"{key}.{config.encode_format}", spool.read(place[1]))
            _add(tar, f"{key}.txt", (row["caption"] or "").encode())
            _add(tar, f"{key}.json", described.encode())
    return rows


def _copy(old: tarfile.TarFile, tar: tarfile.TarFile, key: str) -> None:
    """Takes a sample's files over from an earlier tar, which is read in the same order."""
    for _ in range(MEMBERS):
        member = old.next()
        if member is None or member.name.partition(".")[0] != key:
            raise ValueError(f"the earlier tar holds no whole sample {key}; download the shard anew")
        file = old.extractfile(member)
        assert file is not None, member.name
        _add(tar, member.name, file.read())


def _iterate(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file whose header depends on name and size alone."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


_TEXT, _WHOLE = pa.string(), pa.int32()
_TYPES = {"key": _TEXT, "url": _TEXT, "caption": _TEXT, "status": _TEXT, "reason": _TEXT, "error_message": _TEXT}
_TYPES |= {"width": _WHOLE, "height": _WHOLE, "original_width": _WHOLE, "original_height": _WHOLE}
_TYPES |= {"original_bytes": pa.int64(), "sha256": _TEXT}


def _download_table(rows: list[dict[str, Any]], listing: pa.Table) -> pa.Table:
    """The download columns of every row, then the listing's other columns as they are."""
    table = pa.Table.from_pylist(rows, schema=pa.schema(_TYPES))
    for name in listing.column_names:
        if name not in _TYPES:
            table = table.append_column(listing.schema.field(name), listing[name])
    return table
