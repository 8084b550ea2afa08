"""Kept pairs as Parquet, one binary column of pixels a training resolution, so that a stage reads its own alone.

Column ``pixels_<size>`` holds RGB pictures: squares, or with aspect buckets the shape of the row's bucket. How, its
field metadata say: ``encoding`` ("raw": uint8 HWC bytes; "png" or "jpeg": a file), ``size``, and ``shapes`` of buckets.
Row groups are small so that a shuffle can seek, and each is of one split and one bucket: a shard's validation rows come
after its others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from dataprep.aspects import bucket_shapes, nearest_bucket
from dataprep.decode import MAX_PIXELS, decode_rgb, read_shard_images, resize_to
from dataprep.download import SUCCESS
from dataprep.schema import BUCKET_COLUMN, ORIGINAL_SIDE, SHAPES_KEY, Config, Shape, UserError, read_table, write_table

ENCODING_KEY, SIZE_KEY = b"encoding", b"size"
VALIDATION = "validation"  # the split whose rows come last


class PackConfig(Config):
    """How training pixels are stored."""

    resolutions: tuple[int, ...] = Field(
        default=(16, 64, 256), strict=False, min_length=1, description="sides in pixels, a column each"
    )
    raw_up_to: int = Field(
        default=64, ge=0, description="resolutions up to this are stored as raw pixels: nothing to decode"
    )
    encoding: Literal["png", "jpeg"] = Field(default="png", description="how larger resolutions are stored")
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="quality where encoding is jpeg")
    crop: Literal["centre", "squash"] = Field(default="centre", description="how a picture becomes its stored shape")
    aspects: tuple[str, ...] = Field(
        default=(), strict=False, description="aspect buckets, width:height, such as 4:3; none: squares"
    )
    aspect_multiple: int = Field(
        default=8, ge=1, description="sides of a bucket at the smallest resolution are multiples of this"
    )
    row_group_rows: int = Field(default=128, ge=1, description="rows a row group, in pack and embeddings")
    compression: Literal["none", "lz4", "zstd"] = Field(
        default="none", description="of raw pixels; a decoder of png and jpeg has its own"
    )
    captions: tuple[str, ...] = Field(
        default=(), strict=False, description="columns of the listing with further captions of a picture, if any"
    )

    def stored_in(self, size: int) -> str:
        """How pictures of ``size`` are stored: raw, or the encoding."""
        return "raw" if size <= self.raw_up_to else self.encoding

    def shapes(self, size: int) -> dict[str, Shape]:
        """Bucket -> its shape at resolution ``size``; the one bucket of squares is `SQUARE`."""
        return bucket_shapes(self.aspects, size, min(self.resolutions), self.aspect_multiple)

    @model_validator(mode="after")
    def _aspects_fit(self) -> PackConfig:
        for name in self.aspects:
            if not re.fullmatch(r"[1-9][0-9]{0,2}:[1-9][0-9]{0,2}", name) or self.aspects.count(name) > 1:
                raise ValueError(
                    f"aspects: {name!r} is no ratio or stands twice; give distinct ones, width:height, as 4:3"
                )
        smallest = min(self.resolutions)
        if self.aspects and (uneven := [size for size in self.resolutions if size % smallest]):
            raise ValueError(f"aspects: resolution {uneven[0]} is no multiple of {smallest}, the smallest; change one")
        self.shapes(smallest)
        return self

    @field_validator("resolutions")
    @classmethod
    def _distinct(cls, resolutions: tuple[int, ...]) -> tuple[int, ...]:
        if bad := [size for size in resolutions if size < 1 or resolutions.count(size) > 1]:
            raise ValueError(f"{bad[0]} is not positive or stands twice; give distinct sides in pixels")
        return resolutions


def pixels_column(size: int) -> str:
    """The name of the column that holds pictures of resolution ``size``."""
    return f"pixels_{size}"


def pack_shard(
    tar_path: str | Path,
    download_path: str | Path,
    selection_path: str | Path | None,
    out_path: str | Path,
    config: PackConfig,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, int]:
    """Packs one download shard: key, caption, split and the pixel columns of the selected rows, in their order.

    Rows of split "validation" come last, and within a split those of a bucket together. ``selection_path`` None takes
    every row that has an image, as split "train". With ``config.captions``, list column ``captions`` has as many for
    each row: its caption, then those of these columns; a missing one is stood in for by the first. Counters rows and
    validation.
    Raises UserError for a caption column that is not there, ValueError where tar, table and selection do not belong
    together.
    """
    downloads = _downloads(download_path, config)
    splits = _splits(downloads, selection_path)
    rows: list[dict[str, Any]] = []
    described = {row["key"]: row for row in downloads.to_pylist()}
    shapes = {size: config.shapes(size) for size in config.resolutions}
    buckets = list(shapes[config.resolutions[0]])
    for key, image in _selected_images(tar_path, splits, max_pixels):
        found = described[key]
        texts = [found[name] for name in ("caption", *config.captions)]
        row = {"key": key, "caption": texts[0], "split": splits[key], "captions": [text or texts[0] for text in texts]}
        row[ORIGINAL_SIDE] = min(found["original_width"], found["original_height"])
        row[BUCKET_COLUMN] = bucket = nearest_bucket(shapes[config.resolutions[0]], *image.shape[:2])
        for size in config.resolutions:
            row[pixels_column(size)] = _encode(resize_to(image, shapes[size][bucket], config.crop), size, config)
        rows.append(row)
    if len(rows) != len(splits):
        raise ValueError(f"{tar_path}: {len(rows)} of {len(splits)} selected images; download the shard again")
    rows.sort(key=lambda row: (row["split"] == VALIDATION, buckets.index(row[BUCKET_COLUMN])))
    schema = _schema(config)
    table = pa.table({name: [row[name] for row in rows] for name in schema.names}, schema=schema)
    write_pack(table, out_path, config)
    return {"rows": table.num_rows, "validation": sum(row["split"] == VALIDATION for row in rows)}


def write_pack(table: pa.Table, path: str | Path, config: PackConfig) -> None:
    """Writes a pack shard; where its rows change their split or their bucket, a row group ends.

    Page checksums tell damage from data. Pixels are neither put in dictionaries nor given statistics.
    """
    pixels = [pixels_column(size) for size in config.resolutions]
    raw = [pixels_column(size) for size in config.resolutions if config.stored_in(size) == "raw"]
    others = [name for name in table.column_names if name not in pixels]
    paths = [f"{name}.list.element" if name == "captions" else name for name in others]
    compression = dict.fromkeys(paths, "zstd") | dict.fromkeys(pixels, "none")
    write_table(
        table,
        path,
        "pack",
        row_groups=_row_groups(table, config),
        compression=compression | dict.fromkeys(raw, config.compression),
        use_dictionary=[name for name in ("split", BUCKET_COLUMN) if name in others],
        write_statistics=others,
        write_page_checksum=True,
    )


def _row_groups(table: pa.Table, config: PackConfig) -> list[int]:
    kinds = table.select([name for name in ("split", BUCKET_COLUMN) if name in table.column_names]).to_pylist()
    runs = [sum(1 for _ in run) for _, run in groupby(kinds)]
    most = config.row_group_rows
    return [min(most, rows - start) for rows in runs for start in range(0, rows, most)]


def _downloads(path: str | Path, config: PackConfig) -> pa.Table:
    table = read_table(path, "download")
    if missing := [name for name in config.captions if name not in table.column_names]:
        own = ", ".join(name for name in table.column_names if pa.types.is_string(table.schema.field(name).type))
        raise UserError(f"pack.captions={missing[0]}: the listing has no such column (text columns: {own})")
    return table.select(["key", "caption", "status", "original_width", "original_height", *config.captions])


def _splits(downloads: pa.Table, selection_path: str | Path | None) -> dict[str, str]:
    """key -> split of the rows to pack."""
    if selection_path is None:
        statuses = zip(downloads["key"].to_pylist(), downloads["status"].to_pylist(), strict=True)
        return {key: "train" for key, status in statuses if status == SUCCESS}
    selection = read_table(selection_path, "selection")
    if not selection["key"].combine_chunks().equals(downloads["key"].combine_chunks()):
        raise ValueError(f"{selection_path}: not the rows of its download shard; select again")
    return {row["key"]: row["split"] for row in selection.to_pylist() if row["keep"]}


def _selected_images(tar_path: str | Path, splits: dict[str, str], max_pixels: int) -> Iterator[tuple[str, np.ndarray]]:
    for key, data in read_shard_images(tar_path):
        if key in splits:
            yield key, decode_rgb(data, max_pixels)


def _encode(image: np.ndarray, size: int, config: PackConfig) -> bytes:
    """uint8 HWC RGB to the bytes of the column of resolution ``size``."""
    encoding = config.stored_in(size)
    if encoding == "raw":
        return image.tobytes()
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3] if encoding == "png" else [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    done, data = cv2.imencode(f".{encoding}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done, encoding
    return data.tobytes()


def _schema(config: PackConfig) -> pa.Schema:
    fields = [pa.field(name, pa.string()) for name in ("key", "caption", "split")]
    fields.append(pa.field(ORIGINAL_SIDE, pa.int32()))
    if config.aspects:
        fields.append(pa.field(BUCKET_COLUMN, pa.string()))
    if config.captions:
        fields.append(pa.field("captions", pa.list_(pa.string())))
    for size in config.resolutions:
        described = {ENCODING_KEY: config.stored_in(size).encode(), SIZE_KEY: str(size).encode()}
        if config.aspects:
            described[SHAPES_KEY] = json.dumps(config.shapes(size)).encode()
        fields.append(pa.field(pixels_column(size), pa.binary(), metadata=described))
    return pa.schema(fields)
