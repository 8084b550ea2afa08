"""A row group in memory: NumPy arrays over Arrow's buffers, nothing copied.

Legend: T tokens of all rows of a part, L tokens of one row, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import torch

from dataprep.codec import dequantise, stored_views
from dataprep.schema import Shape, UserError

RAW = "raw"


@dataclass(frozen=True)
class Pixels:
    """One pixel column: raw ones as uint8 RGB (n, height, width, 3), or a compressed image a row."""

    shape: Shape
    encoding: str  # raw, or a format that OpenCV reads
    raw: np.ndarray | None
    data: np.ndarray  # uint8: all images, one after another
    starts: np.ndarray  # int (n + 1,)

    def image(self, row: int) -> np.ndarray:
        """uint8 RGB (height, width, 3) of ``row``. Raises ValueError where the bytes are not such an image."""
        if self.raw is not None:
            return self.raw[row]
        return decode_pixels(self.data[self.starts[row] : self.starts[row + 1]], self.encoding, self.shape)


@dataclass(frozen=True)
class Text:
    """Embeddings as stored; the tokens of row i are ``values_TD[starts[i]:starts[i + 1]]``."""

    values_TD: np.ndarray
    scale_T: np.ndarray | None
    starts: np.ndarray  # int64 (n + 1,)

    def copy(self, row: int, out_LD: np.ndarray) -> None:
        """Decodes ``row`` into the float32 ``out_LD`` of its shape."""
        start, stop = self.starts[row], self.starts[row + 1]
        values_LD = self.values_TD[start:stop]
        if self.scale_T is None:  # float16, which torch widens many times faster than NumPy
            torch.from_numpy(out_LD).copy_(torch.from_dlpack(values_LD))
        else:
            dequantise(values_LD, self.scale_T[start:stop], out_LD)


@dataclass(frozen=True)
class Part:
    """A row group in memory."""

    name: str  # file and row group, for messages
    kept: np.ndarray  # int64: its rows of the split that is read; the arrays below have all rows
    keys: list[str]
    captions: list[list[str]]  # all captions of a row
    pixels: dict[str, Pixels]
    times: int  # captions of a row
    text: Text | None  # row r's n-th caption is at r * times + n


def make_part(
    name: str, kept: np.ndarray, pack: pa.Table, embed: pa.Table | None, stored: dict[str, tuple[str, Shape]]
) -> Part:
    """A part of one row group's tables, each column a single chunk; ``stored`` is (encoding, shape) a pixel column.

    Raises ValueError where bytes do not fit together, UserError where ``embed`` is of other rows than ``pack``.
    """
    keys = pack.column("key").to_pylist()
    listed = "captions" in pack.column_names
    captions = pack.column("captions" if listed else "caption").to_pylist()
    captions = captions if listed else [[caption] for caption in captions]
    times = len(captions[0])
    if any(len(several) != times for several in captions):
        raise ValueError("its rows do not have equally many captions")
    pixels = {column: _pixels(pack.column(column).chunk(0), *what) for column, what in stored.items()}
    text = None
    if embed is not None:
        if embed.column("key").to_pylist() != [key for key in keys for _ in range(times)]:
            raise UserError(f"{name}: embeddings and pack do not have the same rows in the same order; run embed again")
        text = _text(embed)
    return Part(name, kept, keys, captions, pixels, times, text)


def _pixels(array: pa.Array, encoding: str, shape: Shape) -> Pixels:
    starts, data = binary_views(array)
    raw = None
    if encoding == RAW:
        height, width = shape
        wrong = np.flatnonzero(np.diff(starts) != height * width * 3)
        if len(wrong):
            row = int(wrong[0])
            held = starts[row + 1] - starts[row]
            raise ValueError(f"row {row}: {held} bytes do not hold a raw {width}x{height} image")
        raw = data[starts[0] : starts[-1]].reshape(len(array), height, width, 3)
    return Pixels(shape, encoding, raw, data, starts)


def _text(table: pa.Table) -> Text:
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(table.num_rows - 1).to_pylist()[0]
    codec, dim = last["codec"], last["dim"]
    lengths = table.column("length").chunk(0).to_numpy().astype(np.int64)
    data_starts, data = binary_views(table.column("embedding").chunk(0))
    scale = None
    if first["scale"] is not None:
        scale_starts, scale_bytes = binary_views(table.column("scale").chunk(0))
        scale = scale_bytes[scale_starts[0] : scale_starts[-1]]
    values_TD, scale_T = stored_views(data[data_starts[0] : data_starts[-1]], scale, dim, codec)
    token_bytes = values_TD.itemsize * dim
    if (first["codec"], first["dim"]) != (codec, dim) or not np.array_equal(
        np.diff(data_starts), lengths * token_bytes
    ):
        raise ValueError("the embeddings' bytes do not have the lengths that their rows say")
    return Text(values_TD, scale_T, np.concatenate([[0], np.cumsum(lengths)]))


def binary_views(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (n + 1,) into the bytes (uint8) of a binary array without nulls. Raises ValueError where it has some."""
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    return starts, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def decode_pixels(data: np.ndarray | bytes, encoding: str, shape: Shape) -> np.ndarray:
    """One stored image as uint8 RGB (height, width, 3). Raises ValueError where the bytes are not such an image."""
    values, (height, width) = np.frombuffer(data, dtype=np.uint8), shape
    if encoding == RAW:
        if len(values) != height * width * 3:
            raise ValueError(f"{len(values)} bytes do not hold a raw {width}x{height} RGB image")
        return values.reshape(height, width, 3)
    image = cv2.imdecode(values, cv2.IMREAD_COLOR_RGB) if len(values) else None
    if image is None or image.shape != (height, width, 3):
        raise ValueError(f"{len(values)} bytes do not hold a {width}x{height} {encoding} image")
    return image
