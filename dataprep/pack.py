"""Kept pairs as Parquet, one binary column of pixels a training resolution, so that a stage reads its own alone.

Column ``pixels_<size>`` holds square RGB pictures. How, its field metadata say: ``encoding`` ("raw": uint8
HWC bytes; "png" or "jpeg": a file) and ``size``. Row groups are small so that a shuffle can seek.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from dataprep.decode import decode_rgb, read_shard_images, resize_square
from dataprep.download import SUCCESS
from dataprep.schema import Config, read_table, write_table

ENCODING_KEY, SIZE_KEY = b"encoding", b"size"


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
    crop: Literal["centre", "squash"] = Field(default="centre", description="how a picture becomes a square")
    row_group_rows: int = Field(default=128, ge=1, description="rows a row group")

    @field_validator("resolutions")
    @classmethod
    def _distinct(cls, resolutions: tuple[int, ...]) -> tuple[int, ...]:
        if bad := [size for size in resolutions if size < 1 or resolutions.count(size) > 1]:
            raise ValueError(f"{bad[0]} is not positive or stands twice; give distinct sides in pixels")
        return resolutions


def pixels_column(size: int) -> str:
    """The name of the column that holds pictures of ``size`` x ``size``."""
    return f"pixels_{size}"


def pack_shard(
    tar_path: str | Path,
    download_path: str | Path,
    selection_path: str | Path | None,
    out_path: str | Path,
    config: PackConfig,
) -> dict[str, int]:
    """Packs one download shard: key, caption, split and the pixel columns of the selected rows, in their order.

    ``selection_path`` None takes every row that has an image, as split "train". Counters rows and validation.
    Raises ValueError where tar, table and selection do not belong together.
    """
    downloads = read_table(download_path, "download", ["key", "caption", "status"])
    splits = _splits(downloads, selection_path)
    columns: dict[str, list[Any]] = {"key": [], "caption": [], "split": []}
    columns |= {pixels_column(size): [] for size in config.resolutions}
    captions = dict(zip(downloads["key"].to_pylist(), downloads["caption"].to_pylist(), strict=True))
    for key, image in _selected_images(tar_path, splits):
        columns["key"].append(key)
        columns["caption"].append(captions[key])
        columns["split"].append(splits[key])
        for size in config.resolutions:
            columns[pixels_column(size)].append(_encode(resize_square(image, size, config.crop), config))
    if len(columns["key"]) != len(splits):
        raise ValueError(
            f"{tar_path}: {len(columns['key'])} of {len(splits)} selected images; download the shard again"
        )
    table = pa.table(columns, schema=_schema(config))
    write_table(table, out_path, "pack", row_group_size=config.row_group_rows)
    return {"rows": table.num_rows, "validation": columns["split"].count("validation")}


def _splits(downloads: pa.Table, selection_path: str | Path | None) -> dict[str, str]:
    """key -> split of the rows to pack."""
    if selection_path is None:
        statuses = zip(downloads["key"].to_pylist(), downloads["status"].to_pylist(), strict=True)
        return {key: "train" for key, status in statuses if status == SUCCESS}
    selection = read_table(selection_path, "selection")
    if not selection["key"].combine_chunks().equals(downloads["key"].combine_chunks()):
        raise ValueError(f"{selection_path}: not the rows of its download shard; select again")
    return {row["key"]: row["split"] for row in selection.to_pylist() if row["keep"]}


def _selected_images(tar_path: str | Path, splits: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    for key, data in read_shard_images(tar_path):
        if key in splits:
            yield key, decode_rgb(data)


def _encoding(size: int, config: PackConfig) -> str:
    return "raw" if size <= config.raw_up_to else config.encoding


def _encode(image: np.ndarray, config: PackConfig) -> bytes:
    """uint8 HWC RGB to the bytes of its column."""
    encoding = _encoding(image.shape[0], config)
    if encoding == "raw":
        return image.tobytes()
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3] if encoding == "png" else [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    done, data = cv2.imencode(f".{encoding}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done, encoding
    return data.tobytes()


def _schema(config: PackConfig) -> pa.Schema:
    fields = [pa.field(name, pa.string()) for name in ("key", "caption", "split")]
    for size in config.resolutions:
        described = {ENCODING_KEY: _encoding(size, config).encode(), SIZE_KEY: str(size).encode()}
        fields.append(pa.field(pixels_column(size), pa.binary(), metadata=described))
    return pa.schema(fields)
