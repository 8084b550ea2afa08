"""Small pack and embedding shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from dataprep.io.pack_format import CAPTIONS_KEY, ENCODING_KEY, TEXT_FEATURES, pixels_column
from dataprep.io.parquet import write_table
from dataprep.io.source_column import SOURCE_COLUMN
from dataprep.text.embedding_codec import encode_embedding

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "yellow": (230, 210, 40)}
SIDES = ("left", "right")
FEATURE_WIDTH = 6
WRITE_OPTIONS: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}


def make_caption(index: int) -> str:
    """Returns the caption of image ``index``; every fifth is partly Chinese."""
    colour, side = list(COLOURS)[index % 4], SIDES[index // 4 % 2]
    return f"a {colour} square on the {side}" if index % 5 else f"{side} 一个 {colour} 正方形"


def make_image(index: int, size: int) -> np.ndarray:
    """Returns uint8 RGB (size, size, 3): a coloured square on its side; the first pixel encodes the index."""
    image = np.full((size, size, 3), 240, np.uint8)
    left = 0 if index // 4 % 2 == 0 else size // 2
    image[size // 4 : 3 * size // 4, left : left + size // 2] = list(COLOURS.values())[index % 4]
    image[0, 0] = (index % 256, index // 256, 7)
    return image


def make_embedding(index: int, dim: int = 8) -> np.ndarray:
    """Returns float32 (L, dim), L from 1 to 5."""
    return np.random.default_rng(index).standard_normal((1 + index % 5, dim)).astype(np.float32)


def make_feature(index: int, name: str) -> np.ndarray:
    """Returns a unit vector, float16 (6,), which says colour and side; that of a caption is noisy."""
    colour, side = index % 4, index // 4 % 2
    value = np.eye(FEATURE_WIDTH)[colour] + (side - 0.5) * np.eye(FEATURE_WIDTH)[4 + side]
    if name == TEXT_FEATURES:
        value = value + 0.2 * np.random.default_rng(index).standard_normal(FEATURE_WIDTH)
    unit: np.ndarray = (value / np.linalg.norm(value)).astype("<f2")
    return unit


def split_rows(count: int, rows: int) -> list[int]:
    """Splits ``count`` rows into row groups of at most ``rows`` rows."""
    return [min(rows, count - at) for at in range(0, count, rows)]


def write_pack(
    path: Path,
    start: int,
    stop: int,
    sizes: tuple[int, ...] = (16, 64),
    raw_up_to: int = 16,
    rows: int = 1000,
    captions: int = 1,
    source: str | None = None,
    names: Sequence[str] | None = None,
    features: Sequence[str] = (),
) -> str:
    """Writes a pack shard of images ``start`` to ``stop``, ``rows`` per row group; every eighth is for validation.

    ``source`` is the source of all, ``names`` those of the captions, ``features`` are columns of `make_feature`.
    """
    indices = range(start, stop)
    columns: dict[str, list[Any]] = {
        "key": [f"{index:05d}" for index in indices],
        "caption": [make_caption(index) for index in indices],
        "split": ["validation" if index % 8 == 7 else "train" for index in indices],
    }
    fields = [pa.field(name, pa.string()) for name in columns]
    if source is not None:
        columns[SOURCE_COLUMN] = [source] * len(indices)
        fields.append(pa.field(SOURCE_COLUMN, pa.string()))
    numbers = [""] if captions == 1 else [f" #{number}" for number in range(captions)]
    columns["captions"] = [[make_caption(index) + number for number in numbers] for index in indices]
    named = {CAPTIONS_KEY: json.dumps(names).encode()} if names else None
    fields.append(pa.field("captions", pa.list_(pa.string()), metadata=named))
    for size in sizes:
        encoding = "raw" if size <= raw_up_to else "png"
        images = [make_image(index, size) for index in indices]
        png = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
        columns[pixels_column(size)] = [image.tobytes() for image in images] if encoding == "raw" else png
        fields.append(pa.field(pixels_column(size), pa.binary(), metadata={ENCODING_KEY: encoding.encode()}))
    for name in features:
        columns[name] = [make_feature(index, name).tobytes() for index in indices]
        fields.append(pa.field(name, pa.binary(2 * FEATURE_WIDTH)))
    groups = split_rows(stop - start, rows)
    write_table(pa.table(columns, schema=pa.schema(fields)), path, "pack", groups, **WRITE_OPTIONS)
    return str(path)


def write_embeddings(
    path: Path, start: int, stop: int, codec: str = "float16", rows: int = 1000, captions: int = 1
) -> str:
    """Writes the embedding shard of `write_pack`; the n-th of k captions of image i is `make_embedding(i * k + n)`."""
    written = []
    for index in range(start * captions, stop * captions):
        value = make_embedding(index)
        data, scale = encode_embedding(value, codec)
        image = index // captions
        row = {"key": f"{image:05d}", "caption": make_caption(image), "length": len(value)}
        written.append(row | {"dim": value.shape[1], "codec": codec, "embedding": data, "scale": scale})
    types = {"key": pa.string(), "caption": pa.string(), "length": pa.int32(), "dim": pa.int32()}
    types |= {"codec": pa.string(), "embedding": pa.binary(), "scale": pa.binary()}
    schema = pa.schema(list(types.items()))
    groups = [count * captions for count in split_rows(stop - start, rows)]
    write_table(pa.Table.from_pylist(written, schema=schema), path, "embeddings", groups, **WRITE_OPTIONS)
    return str(path)
