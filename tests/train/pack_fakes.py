"""Small pack and embedding shards."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from dataprep.codec import encode
from dataprep.schema import write_table

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "yellow": (230, 210, 40)}
SIDES = ("left", "right")


def caption(index: int) -> str:
    """The caption of picture ``index``; Chinese every fifth."""
    colour, side = list(COLOURS)[index % 4], SIDES[index // 4 % 2]
    return f"a {colour} square on the {side}" if index % 5 else f"{side} 一个 {colour} 正方形"


def picture(index: int, size: int) -> np.ndarray:
    """uint8 RGB: a coloured square on its side, one pixel of noise that tells pictures apart."""
    image = np.full((size, size, 3), 240, np.uint8)
    left = 0 if index // 4 % 2 == 0 else size // 2
    image[size // 4 : 3 * size // 4, left : left + size // 2] = list(COLOURS.values())[index % 4]
    image[0, 0] = (index % 256, index // 256, 7)
    return image


def write_pack(
    path: Path,
    start: int,
    stop: int,
    sizes: tuple[int, ...] = (16, 64),
    raw_up_to: int = 16,
    rows: int = 1000,
    captions: int = 1,
) -> str:
    """A pack shard of pictures ``start`` to ``stop``, ``rows`` a row group; every eighth is of split validation."""
    columns: dict[str, list] = {
        "key": [f"{index:05d}" for index in range(start, stop)],
        "caption": [caption(index) for index in range(start, stop)],
        "split": ["validation" if index % 8 == 7 else "train" for index in range(start, stop)],
    }
    fields = [pa.field(name, pa.string()) for name in columns]
    if captions > 1:
        columns["captions"] = [[f"{caption(index)} #{n}" for n in range(captions)] for index in range(start, stop)]
        fields.append(pa.field("captions", pa.list_(pa.string())))
    for size in sizes:
        encoding = "raw" if size <= raw_up_to else "png"
        images = [picture(index, size) for index in range(start, stop)]
        png = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
        columns[f"pixels_{size}"] = [image.tobytes() for image in images] if encoding == "raw" else png
        metadata = {b"encoding": encoding.encode(), b"size": str(size).encode()}
        fields.append(pa.field(f"pixels_{size}", pa.binary(), metadata=metadata))
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    write_table(pa.table(columns, schema=pa.schema(fields)), path, "pack", cut(stop - start, rows), **options)
    return str(path)


def embedding(index: int, dim: int = 8) -> np.ndarray:
    """float32 (L, dim), L from 1 to 5."""
    return np.random.default_rng(index).standard_normal((1 + index % 5, dim)).astype(np.float32)


def cut(count: int, rows: int) -> list[int]:
    """Row groups of at most ``rows`` rows."""
    return [min(rows, count - at) for at in range(0, count, rows)]


def write_embeddings(
    path: Path, start: int, stop: int, codec: str = "float16", rows: int = 1000, captions: int = 1
) -> str:
    """The embedding shard beside `write_pack`; of k captions the n-th of picture i is `embedding(i * k + n)`."""
    written = []
    for index in range(start * captions, stop * captions):
        value = embedding(index)
        data, scale = encode(value, codec)
        picture_index = index // captions
        row = {"key": f"{picture_index:05d}", "caption": caption(picture_index), "length": len(value)}
        written.append(row | {"dim": value.shape[1], "codec": codec, "embedding": data, "scale": scale})
    types = {"key": pa.string(), "caption": pa.string(), "length": pa.int32(), "dim": pa.int32()}
    types |= {"codec": pa.string(), "embedding": pa.binary(), "scale": pa.binary()}
    schema = pa.schema(list(types.items()))
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    groups = [count * captions for count in cut(stop - start, rows)]
    write_table(pa.Table.from_pylist(written, schema=schema), path, "embeddings", groups, **options)
    return str(path)
