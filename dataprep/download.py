"""From a listing shard to a download shard in img2dataset's layout, byte-identical when run again on the same bytes.

``{i:05d}.tar`` holds ``{key}.jpg|png|webp``, ``{key}.txt`` and ``{key}.json`` of the successes; ``{i:05d}.parquet`` has
every row, failures with their reason. The resize and encode policy and the key format are img2dataset's own code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import pyarrow as pa
from pydantic import Field, model_validator

from dataprep import storage
from dataprep.decode import MAX_PIXELS, decode_rgb
from dataprep.fetch import FetchConfig, Fetched, Hosts, fetch_all
from dataprep.redact import FORGOTTEN
from dataprep.schema import Config, read_table, write_table
from dataprep.sources import ROOT_KEY

SHARD_DIGITS, SAMPLE_DIGITS = 5, 4
SUCCESS, NOT_FETCHED, NOT_RESIZED = "success", "failed_to_download", "failed_to_resize"


class DownloadConfig(Config):
    """How images are fetched and stored."""

    fetch: FetchConfig = Field(default=FetchConfig(), description="how URLs are fetched")
    image_size: int = Field(default=256, ge=8, description="side in pixels that resize_mode refers to")
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = Field(
        default="keep_ratio", description="img2dataset's modes; keep_ratio: the shorter side becomes image_size"
    )
    resize_only_if_bigger: bool = Field(default=True, description="do not enlarge images below image_size")
    encode_format: Literal["jpg", "png", "webp"] = Field(default="jpg", description="format of the stored images")
    encode_quality: int = Field(default=95, ge=0, le=100, description="jpg and webp: quality; png: compression 0 to 9")
    min_side: int = Field(default=0, ge=0, description="an original with a shorter side below this is not stored")
    max_aspect: float | None = Field(
        default=None, ge=1, description="an original longer than this times its shorter side is not stored; null: any"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, description="an original with more is not decoded; read from its header"
    )

    @model_validator(mode="after")
    def _quality_fits_format(self) -> DownloadConfig:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(f"encode_quality {self.encode_quality} is above png's 9; set it between 0 and 9")
        return self


def download_shard(
    listing_path: str | Path,
    shard_index: int,
    out_dir: str | Path,
    config: DownloadConfig,
    hosts: Hosts | None = None,
    *,
    forgotten: frozenset[str] = frozenset(),
) -> dict[str, int]:
    """Downloads one listing shard into ``out_dir``; counters rows, bytes and one a status.

    ``hosts`` sends host names to a fixed (address, port). Rows of a folder listing are read from that folder. A row
    without URL is one that is forgotten, and so is an image whose stored sha256 is among the ``forgotten``.
    Raises OSError where ``out_dir`` cannot be written; what a URL does never raises.
    """
    listing = read_table(listing_path, "listing")
    if listing.num_rows > 10**SAMPLE_DIGITS:
        raise ValueError(f"{listing_path}: {listing.num_rows} rows, a shard holds at most {10**SAMPLE_DIGITS}")
    urls = listing["url"].to_pylist()
    root = (listing.schema.metadata or {}).get(ROOT_KEY)
    wanted = [url for url in urls if url]
    got = fetch_all(wanted, config.fetch, hosts) if root is None else read_files(root.decode(), wanted, config.fetch)
    fetched = (next(got) if url else Fetched(None, FORGOTTEN) for url in urls)
    tar_path = Path(out_dir) / f"{shard_index:05d}.tar"
    rows = write_tar(tar_path, listing, shard_index, fetched, config, forgotten)
    write_table(_download_table(rows, listing), tar_path.with_suffix(".parquet"), "download")
    counted = Counter(row["status"] for row in rows)
    statuses = {status: counted[status] for status in (SUCCESS, NOT_FETCHED, NOT_RESIZED)}
    return {"rows": len(rows), "bytes": tar_path.stat().st_size} | statuses


def read_files(root: str, names: Iterable[str], config: FetchConfig) -> Iterator[Fetched]:
    """Reads files below the folder ``root`` as `fetch_all` fetches URLs: the same limits, the same result."""
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            yield Fetched(None, "path leads out of the folder")
            continue
        try:
            body = storage.read_bytes(storage.join(root, name))
        except OSError as error:
            yield Fetched(None, f"file not readable: {type(error).__name__}")
            continue
        too_long = len(body) > config.max_bytes
        yield Fetched(None, f"body above {config.max_bytes} bytes") if too_long else Fetched(body, None)


def write_tar(
    tar_path: Path,
    listing: pa.Table,
    shard_index: int,
    fetched: Iterable[Fetched],
    config: DownloadConfig,
    forgotten: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """Processes images as they arrive, in listing order, into the tar; returns the download columns of every row."""
    resize = make_resizer(config)
    from img2dataset.downloader import compute_key  # not at the top: see make_resizer

    rows = []
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, (result, source) in enumerate(zip(fetched, _iterate(listing), strict=True)):
            key = compute_key(index, shard_index, SAMPLE_DIGITS, SHARD_DIGITS)
            row, image = _process(result, resize, config, forgotten)
            row = {"key": key, "url": source.pop("url"), "caption": source.pop("caption")} | row
            rows.append(row)
            if image is not None:
                described = json.dumps(row | source, ensure_ascii=False, sort_keys=True, default=str, indent=4)
                _add(tar, f"{key}.{config.encode_format}", image)
                _add(tar, f"{key}.txt", row["caption"].encode())
                _add(tar, f"{key}.json", described.encode())
    return rows


def make_resizer(config: DownloadConfig) -> Any:
    """img2dataset's Resizer. It redirects the process's stdout and stderr while it works: one thread at a time."""
    # albumentations, which img2dataset imports, looks for a newer version of itself on the network when imported.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.resizer import Resizer

    return Resizer(
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        resize_only_if_bigger=config.resize_only_if_bigger,
        encode_quality=config.encode_quality,
        encode_format=config.encode_format,
        min_image_size=config.min_side,
        max_aspect_ratio=config.max_aspect or float("inf"),
    )


def _process(
    fetched: Fetched, resize: Any, config: DownloadConfig, forgotten: frozenset[str]
) -> tuple[dict[str, Any], bytes | None]:
    """Status columns of one row, and its image as it will be stored."""
    row: dict[str, Any] = dict.fromkeys(("width", "height", "original_width", "original_height", "sha256"))
    if fetched.body is None:
        return row | {"status": NOT_FETCHED, "error_message": fetched.error}, None
    try:
        image_HWC = decode_rgb(fetched.body, config.max_pixels)
    except ValueError as error:
        return row | {"status": NOT_RESIZED, "error_message": str(error)}, None
    # The Resizer wants a file; an uncompressed one costs a copy, and keeps our decoder's orientation, depth and checks.
    bitmap = cv2.imencode(".bmp", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR))[1].tobytes()
    image, width, height, original_width, original_height, error_message = resize(io.BytesIO(bitmap))
    if error_message is not None:
        return row | {"status": NOT_RESIZED, "error_message": error_message}, None
    sha256 = hashlib.sha256(image).hexdigest()
    if sha256 in forgotten:
        return row | {"status": NOT_FETCHED, "error_message": FORGOTTEN}, None
    row |= {"width": width, "height": height, "original_width": original_width, "original_height": original_height}
    return row | {"sha256": sha256, "status": SUCCESS, "error_message": None}, image


def _iterate(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file whose header depends on name and size alone."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _download_table(rows: list[dict[str, Any]], listing: pa.Table) -> pa.Table:
    """The download columns of every row, then the listing's other columns as they are."""
    text, whole = pa.string(), pa.int32()
    types = {"key": text, "url": text, "caption": text, "status": text, "error_message": text}
    types |= {"width": whole, "height": whole, "original_width": whole, "original_height": whole, "sha256": text}
    table = pa.Table.from_pylist(rows, schema=pa.schema(types))
    for name in listing.column_names:
        if name not in types:
            table = table.append_column(listing.schema.field(name), listing[name])
    return table
