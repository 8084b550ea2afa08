"""Training data on disk for `benchmarks.gpu_check`: packs of noise photos with embeddings of T5-XXL's width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from benchmarks.captions import make_captions, make_photo
from dataprep.images.pixel_encodings import jpeg_options
from dataprep.io.pack_format import ENCODING_KEY, pixels_column
from dataprep.io.parquet import write_table
from dataprep.pack_config import PackConfig
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import SCHEMA, write_embeddings
from dataprep.text.embedding_codec import encode_embedding

RAW_UP_TO, GROUP_ROWS, LONGEST = 64, 128, 64


def write_training_data(folder: Path, rows: int, sizes: tuple[int, ...], width: int) -> tuple[list[str], list[str]]:
    """Writes a pack shard and its embedding shard; returns their paths, as `train_diffusion` takes them.

    Pixels are raw up to 64 px, JPEG above, as in the shipped configs; embeddings int8 of 2 to `LONGEST` tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    captions = make_captions(rows, 5000, rng)
    keys = [f"{index:09d}" for index in range(rows)]
    columns: dict[str, list[Any]] = {"key": keys, "caption": captions, "captions": [[text] for text in captions]}
    columns["split"] = ["train"] * rows
    fields = [pa.field("key", pa.string()), pa.field("caption", pa.string())]
    fields += [pa.field("captions", pa.list_(pa.string())), pa.field("split", pa.string())]
    photos = [make_photo(rng, max(sizes)) for _ in range(min(rows, 64))]
    for size in sizes:
        encoding = "raw" if size <= RAW_UP_TO else "jpeg"
        small = [encode_pixels(photo, size, encoding) for photo in photos]
        columns[pixels_column(size)] = [small[index % len(small)] for index in range(rows)]
        fields.append(pa.field(pixels_column(size), pa.binary(), metadata={ENCODING_KEY: encoding.encode()}))
    groups = [min(GROUP_ROWS, rows - at) for at in range(0, rows, GROUP_ROWS)]
    pack, embed = folder / "pack.parquet", folder / "embed.parquet"
    table = pa.table(columns, schema=pa.schema(fields))
    write_table(table, pack, "pack", groups, compression="none", use_dictionary=False, write_page_checksum=True)
    write_embeddings(_make_embeddings(keys, captions, width, rng), embed, EmbedConfig(codec="int8"), groups)
    return [str(pack)], [str(embed)]


def encode_pixels(photo_HWC: np.ndarray, size: int, encoding: str) -> bytes:
    """Returns the photo at ``size`` pixels, as bytes or as the JPEG that stage `pack` would store."""
    image = cv2.resize(photo_HWC, (size, size), interpolation=cv2.INTER_AREA)
    if encoding == "raw":
        return image.tobytes()
    options = jpeg_options(PackConfig(resolutions=(size,)), (size, size))
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], options)
    assert done
    return data.tobytes()


def _make_embeddings(keys: list[str], captions: list[str], width: int, rng: np.random.Generator) -> pa.Table:
    lengths = rng.integers(2, LONGEST + 1, len(keys))
    rows = []
    for key, caption, length in zip(keys, captions, lengths.tolist(), strict=True):
        data, scale = encode_embedding(rng.standard_normal((length, width), np.float32), "int8")
        row = {"key": key, "caption": caption, "length": length, "dim": width, "codec": "int8"}
        rows.append(row | {"embedding": data, "scale": scale})
    return pa.Table.from_pylist(rows, schema=SCHEMA)
