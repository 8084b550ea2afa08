"""A row group in memory: NumPy views of Arrow's buffers, without copies.

Shape legend: T tokens of all rows of a row group, L tokens of one row, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
import torch

from dataprep.io.errors import UserError
from dataprep.io.pack_format import ImageShape, caption_names
from dataprep.text.embedding_codec import view_stored
from train.loader.jpeg_crop import cut_jpeg
from train.loader.pack_files import RAW

JPEG = "jpeg"  # the encoding that is decoded in place and in part


@dataclass(frozen=True)
class PixelColumn:
    """A pixel column: raw pixels as uint8 RGB (n, height, width, 3), or one compressed image per row."""

    shape: ImageShape
    encoding: str  # raw, or a format that OpenCV decodes
    raw: np.ndarray | None
    data: np.ndarray  # uint8: all images, concatenated
    starts: np.ndarray  # int (n + 1,)

    def read(self, row: int, out_HWC: np.ndarray, top: int = 0, left: int = 0) -> None:
        """Writes the part of image ``row`` from ``top`` and ``left`` on to ``out_HWC``, uint8 RGB, in its size.

        Raises ValueError if the bytes are not such an image.
        """
        if self.raw is not None:
            height, width, _ = out_HWC.shape
            out_HWC[...] = self.raw[row, top : top + height, left : left + width]
            return
        height, width, _ = out_HWC.shape
        data = self.data[self.starts[row] : self.starts[row + 1]]
        if (height, width) == self.shape:
            decode_pixels(data, self.encoding, self.shape, out_HWC)
            return
        cut = cut_jpeg(data, self.shape, top, left, height, width) if self.encoding == JPEG else None
        if cut is None:
            image = decode_pixels(data, self.encoding, self.shape)
        else:
            image = decode_pixels(cut.data, self.encoding, (cut.height, cut.width))
            top, left = top - cut.top, left - cut.left
        np.copyto(out_HWC, image[top : top + height, left : left + width])


@dataclass(frozen=True)
class TextColumn:
    """Stored embeddings; the tokens of row i are ``values_TD[starts[i]:starts[i + 1]]``."""

    values_TD: np.ndarray
    scale_T: np.ndarray | None
    starts: np.ndarray  # int64 (n + 1,)

    def span(self, row: int) -> tuple[int, int]:
        """Returns where the tokens of ``row`` start and stop."""
        return int(self.starts[row]), int(self.starts[row + 1])


@dataclass(frozen=True)
class RowGroup:
    """A row group in memory."""

    name: str  # file and row group, for messages
    kept: np.ndarray  # int64: the selected rows; the arrays below have all rows
    keys: list[str]
    captions: list[list[str]]  # all captions per row
    pixels: dict[str, PixelColumn]
    caption_ends: np.ndarray  # float (captions per row,): the share of choices that fall on each caption, summed up
    text: TextColumn | None  # the n-th caption of row r is at r * captions_per_row + n
    vectors: dict[str, np.ndarray] = field(default_factory=dict)  # float16 (rows, width) by column

    @property
    def captions_per_row(self) -> int:
        """The number of captions of each row."""
        return len(self.caption_ends)


def make_row_group(
    name: str,
    kept: np.ndarray,
    pack: pa.Table,
    embed: pa.Table | None,
    stored: dict[str, tuple[str, ImageShape]],
    weights: Mapping[str, float] | None = None,
    vectors: Sequence[str] = (),
) -> RowGroup:
    """Builds a row group from its tables, each column a single chunk; ``stored``: (encoding, shape) per pixel column.

    ``weights``: how often each caption is chosen, by name; None: all equally often. ``vectors`` are the columns of
    vectors. Raises ValueError for inconsistent bytes, UserError if ``embed`` has other rows than ``pack`` or a caption
    has no weight.
    """
    keys = pack.column("key").to_pylist()
    captions = pack.column("captions").to_pylist()
    per_row = len(captions[0])
    if any(len(texts) != per_row for texts in captions):
        raise ValueError("its rows have different numbers of captions")
    pixels = {column: _view_pixels(pack.column(column).chunk(0), *what) for column, what in stored.items()}
    text = None
    if embed is not None:
        if embed.column("key").to_pylist() != [key for key in keys for _ in range(per_row)]:
            raise UserError(f"{name}: embeddings and pack do not have the same rows in the same order; run embed again")
        text = _view_text(embed)
    given = {column: _view_vectors(pack.column(column).chunk(0)) for column in vectors}
    return RowGroup(name, kept, keys, captions, pixels, _sum_weights(name, pack, per_row, weights), text, given)


def _sum_weights(name: str, pack: pa.Table, captions: int, weights: Mapping[str, float] | None) -> np.ndarray:
    """Returns `RowGroup.caption_ends`."""
    each = [1.0] * captions
    if weights is not None:
        names = caption_names(pack.schema.field("captions"))
        if set(names) != set(weights):
            raise UserError(
                f"{name}: has the captions {', '.join(names)}, the config weighs {', '.join(weights)}; run pack again"
            )
        each = [weights[caption] for caption in names]
    return np.cumsum(each) / sum(each)


def _view_pixels(array: pa.Array, encoding: str, shape: ImageShape) -> PixelColumn:
    starts, data = view_binary(array)
    raw = None
    if encoding == RAW:
        height, width = shape
        wrong = np.flatnonzero(np.diff(starts) != height * width * 3)
        if len(wrong):
            row = int(wrong[0])
            held = starts[row + 1] - starts[row]
            raise ValueError(f"row {row}: {held} bytes do not hold a raw {width}x{height} image")
        raw = data[starts[0] : starts[-1]].reshape(len(array), height, width, 3)
    return PixelColumn(shape, encoding, raw, data, starts)


def _view_vectors(array: pa.FixedSizeBinaryArray) -> np.ndarray:
    if array.null_count:
        raise ValueError(f"{array.null_count} vectors are missing")
    width = array.type.byte_width
    values = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    return values.view("<f2").reshape(len(array), width // 2)


def _view_text(table: pa.Table) -> TextColumn:
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(table.num_rows - 1).to_pylist()[0]
    codec, dim = last["codec"], last["dim"]
    lengths = table.column("length").chunk(0).to_numpy().astype(np.int64)
    data_starts, data = view_binary(table.column("embedding").chunk(0))
    scale = None
    if first["scale"] is not None:
        scale_starts, scale_bytes = view_binary(table.column("scale").chunk(0))
        scale = scale_bytes[scale_starts[0] : scale_starts[-1]]
    values_TD, scale_T = view_stored(data[data_starts[0] : data_starts[-1]], scale, dim, codec)
    token_bytes = values_TD.itemsize * dim
    if (first["codec"], first["dim"]) != (codec, dim) or not np.array_equal(
        np.diff(data_starts), lengths * token_bytes
    ):
        raise ValueError("the embeddings' bytes do not match the lengths of their rows")
    return TextColumn(values_TD, scale_T, np.concatenate([[0], np.cumsum(lengths)]))


def view_binary(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns offsets (n + 1,) and bytes (uint8) of a binary array; raises ValueError if it has nulls."""
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    return starts, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)


def decode_tokens(values_LD: np.ndarray, scale_L: np.ndarray | None, out_LD: np.ndarray) -> None:
    """Decodes stored tokens into the float32 array ``out_LD`` of their shape."""
    if values_LD.dtype == np.float16:  # which torch converts many times faster than NumPy
        torch.from_numpy(out_LD).copy_(torch.from_dlpack(values_LD))
        return
    np.copyto(out_LD, values_LD)  # faster than a product of two types
    if scale_L is not None:
        out_LD *= scale_L[:, None]


def decode_pixels(
    data: np.ndarray | bytes, encoding: str, shape: ImageShape, out_HWC: np.ndarray | None = None
) -> np.ndarray:
    """Decodes a stored image to uint8 RGB (height, width, 3), in ``out_HWC`` if given.

    Raises ValueError if the bytes are not such an image.
    """
    values, (height, width) = np.frombuffer(data, dtype=np.uint8), shape
    if encoding == RAW:
        if len(values) != height * width * 3:
            raise ValueError(f"{len(values)} bytes do not hold a raw {width}x{height} RGB image")
        return values.reshape(height, width, 3)
    if out_HWC is None:
        out_HWC = np.empty((height, width, 3), np.uint8)
    image: np.ndarray | None = None
    if encoding == JPEG:  # the same pixels as OpenCV's, a quarter faster, in place, and damage raises
        with suppress(ValueError):
            image = simplejpeg.decode_jpeg(values, buffer=out_HWC)
    elif len(values):
        image = cv2.imdecode(values, cv2.IMREAD_COLOR_RGB)
    if image is None or image.shape != out_HWC.shape:
        raise ValueError(f"{len(values)} bytes do not hold a {width}x{height} {encoding} image")
    if not np.may_share_memory(image, out_HWC):
        np.copyto(out_HWC, image)
    return out_HWC
