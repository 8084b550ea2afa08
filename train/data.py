"""Batches as a pure function of (seed, step): the same samples for any number of ranks, with or without accumulation.

The samples form one endless stream: position p is row ``permutation(seed, p // rows)[p % rows]``, and step s takes
positions s*G to (s+1)*G for a global batch of G. Nothing is remembered between calls, so a resume needs only the step.

This version holds the compressed columns that it was asked for in memory (decoding happens a batch at a time).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dataprep.codec import decode
from dataprep.schema import UserError, read_table

Batch = dict[str, Any]
EMBEDDING_COLUMNS = ["key", "length", "dim", "codec", "embedding", "scale"]


def sample_seed(seed: int, step: int, index: int, stream: str = "") -> int:
    """A 63-bit seed that depends on nothing but its arguments; ``stream`` separates uses within a sample."""
    text = f"{seed}/{step}/{index}/{stream}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class SampleRandom:
    """Random numbers of each sample of a batch, from (seed, step, the sample's position in the stream) and a name."""

    def __init__(self, seed: int, step: int, indices: Sequence[int]) -> None:
        self.seed, self.step, self.indices = seed, step, [int(index) for index in indices]

    def seeds(self, stream: str) -> list[int]:
        """One seed a sample."""
        return [sample_seed(self.seed, self.step, index, stream) for index in self.indices]

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal float32 (B, *shape) on the CPU."""
        return self._draw(torch.randn, stream, shape)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Uniform float32 in [0, 1), (B, *shape), on the CPU."""
        return self._draw(torch.rand, stream, shape)

    def _draw(self, function: Any, stream: str, shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(len(self.indices), *shape)
        generator = torch.Generator()
        for row, seed in zip(out, self.seeds(stream), strict=True):
            generator.manual_seed(seed)
            row.copy_(function(shape, generator=generator))
        return out


class Stream(ABC):
    """The endless shuffled stream over ``rows`` rows, cut into global batches. Subclasses turn rows into tensors."""

    def __init__(self, rows: int, seed: int, global_batch: int) -> None:
        if rows < 1:
            raise UserError("training data: 0 rows are left to train on; loosen the filters or give more data")
        if global_batch < 1:
            raise UserError(f"batch_size={global_batch}: give 1 or more")
        self.rows, self.seed, self.global_batch = rows, seed, global_batch
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.rows

    def positions(self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1) -> np.ndarray:
        """Stream positions, int64 (G / (world * accumulation),), of one micro-batch of one rank at ``step``."""
        parts = world * accumulation
        if self.global_batch % parts:
            raise UserError(
                f"batch_size={self.global_batch}: not divisible by {world} ranks x accumulation {accumulation}; "
                f"take a multiple of {parts}"
            )
        size = self.global_batch // parts
        start = step * self.global_batch + (micro * world + rank) * size
        return np.arange(start, start + size, dtype=np.int64)

    def row_ids(self, positions: np.ndarray) -> np.ndarray:
        """The row at each stream position, int64, of the same shape."""
        epochs, offsets = np.divmod(positions, self.rows)
        return np.array([self._order(int(e))[o] for e, o in zip(epochs, offsets, strict=True)], dtype=np.int64)

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng(sample_seed(self.seed, epoch, 0, "order")).permutation(self.rows)
            # A batch may straddle two epochs; older ones are not needed again.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return order

    def batch(self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1) -> Batch:
        """One micro-batch: what `gather` gives, and ``index``, the int64 stream positions (B,)."""
        positions = self.positions(step, rank, world, micro, accumulation)
        return self.gather(self.row_ids(positions), positions) | {"index": torch.from_numpy(positions)}

    @abstractmethod
    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        """The columns of these rows; ``positions`` seed what is random in them."""


class CaptionLoader(Stream):
    """Batches of captions alone: ``{"key": list[str], "caption": list[str], "index": int64 (B,)}``."""

    def __init__(self, captions: Sequence[str], seed: int, global_batch: int) -> None:
        self.captions = list(captions)
        super().__init__(len(self.captions), seed, global_batch)

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": [str(row) for row in rows], "caption": [self.captions[row] for row in rows]}


class Loader(Stream):
    """Batches from pack shards, and from the embedding shards that are row-aligned with them.

    A batch holds ``key`` and ``caption`` (lists of str), ``index`` int64 (B,), each pixel column as uint8 (B, H, W, C),
    and with embeddings ``text_BLD`` float32, zero-padded to the longest of the batch, and ``text_mask_BL`` bool.

    ``split`` keeps the rows of that split (None: all). ``crop`` cuts the same random window from every pixel column:
    ``crop`` pixels of the largest, proportionally fewer of smaller ones.
    Raises UserError for missing columns, shards that are not aligned, an empty split, or an impossible crop.
    """

    def __init__(
        self,
        pack_paths: Sequence[str],
        embed_paths: Sequence[str] | None,
        columns: Sequence[str],
        split: str | None,
        seed: int,
        global_batch: int,
        crop: int | None = None,
    ) -> None:
        if not pack_paths:
            raise UserError("training data: there are no pack shards; run the pack stage first")
        self.columns, self.crop = tuple(columns), crop
        self.sizes = {name: _size(name) for name in self.columns}
        table = pa.concat_tables(_read_pack(path, self.columns) for path in pack_paths)
        self.encodings = {name: column_encoding(table.schema.field(name)) for name in self.columns}
        self.embeddings: dict[str, pa.Array] | None = None
        if embed_paths is not None:
            self.embeddings = _arrays(_read_embeddings(embed_paths, table.column("key")))
        splits = np.array(table.column("split").to_pylist(), dtype=object)
        self.arrays = _arrays(table.drop_columns("split"))
        self.ids = np.flatnonzero(splits == split) if split is not None else np.arange(len(splits))
        if not len(self.ids):
            found = ", ".join(sorted({str(name) for name in splits})) or "no rows at all"
            raise UserError(f"training data: no row of split {split!r} (there are: {found}); loosen the filters")
        self._check_crop()
        super().__init__(len(self.ids), seed, global_batch)

    def _check_crop(self) -> None:
        if self.crop is None:
            return
        largest, smallest = max(self.sizes.values()), min(self.sizes.values())
        if not 0 < self.crop <= largest or largest % smallest or self.crop % (largest // smallest):
            raise UserError(
                f"crop={self.crop}: give a multiple of {largest // smallest} up to {largest}, the largest pixel column"
            )

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        ids = self.ids[rows]
        batch: Batch = {name: [self.arrays[name][int(row)].as_py() for row in ids] for name in ("key", "caption")}
        windows = [self._window(int(position)) for position in positions]
        for name in self.columns:
            batch[name] = self._pixels(name, ids, windows)
        if self.embeddings is not None:
            batch["text_BLD"], batch["text_mask_BL"] = self._text(ids)
        return batch

    def _window(self, position: int) -> tuple[float, float]:
        """Top and left of the crop as a share of the image, on the grid of the smallest pixel column."""
        if self.crop is None:
            return 0.0, 0.0
        largest, smallest = max(self.sizes.values()), min(self.sizes.values())
        rng = np.random.default_rng(sample_seed(self.seed, 0, position, "crop"))
        top, left = rng.integers(0, (largest - self.crop) * smallest // largest + 1, size=2)
        return float(top / smallest), float(left / smallest)

    def _pixels(self, name: str, ids: np.ndarray, windows: list[tuple[float, float]]) -> Tensor:
        size, array, encoding = self.sizes[name], self.arrays[name], self.encodings[name]
        side = size if self.crop is None else self.crop * size // max(self.sizes.values())
        out = np.empty((len(ids), side, side, 3), dtype=np.uint8)
        for image, row, (top, left) in zip(out, ids, windows, strict=True):
            y, x = round(top * size), round(left * size)
            image[:] = decode_pixels(array[int(row)].as_buffer(), encoding, size)[y : y + side, x : x + side]
        return torch.from_numpy(out)

    def _text(self, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        assert self.embeddings is not None
        column = self.embeddings
        rows = [{name: column[name][int(row)].as_py() for name in EMBEDDING_COLUMNS} for row in ids]
        longest = max(1, *(row["length"] for row in rows))
        text_BLD = np.zeros((len(rows), longest, rows[0]["dim"]), dtype=np.float32)
        mask_BL = np.zeros((len(rows), longest), dtype=bool)
        for text_LD, mask_L, row in zip(text_BLD, mask_BL, rows, strict=True):
            length = row["length"]
            text_LD[:length] = decode(row["embedding"], row["scale"], length, row["dim"], row["codec"])
            mask_L[:length] = True
        return torch.from_numpy(text_BLD), torch.from_numpy(mask_BL)


def column_encoding(field: pa.Field) -> str:
    """How a pixel column stores its images: raw, or a compressed format that OpenCV reads."""
    return (field.metadata or {}).get(b"encoding", b"raw").decode()


def decode_pixels(data: bytes | pa.Buffer, encoding: str, size: int) -> np.ndarray:
    """One stored image as uint8 RGB (size, size, 3). Raises ValueError where the bytes are not such an image."""
    if encoding == "raw":
        if len(memoryview(data)) != size * size * 3:
            raise ValueError(f"{len(memoryview(data))} bytes do not hold a raw {size}x{size} RGB image")
        return np.frombuffer(data, dtype=np.uint8).reshape(size, size, 3)
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None or image.shape != (size, size, 3):
        raise ValueError(f"{len(memoryview(data))} bytes do not hold a {size}x{size} {encoding} image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _arrays(table: pa.Table) -> dict[str, pa.Array]:
    """Each column as one array: a row of many chunks is slow to find. 64-bit offsets, so that 2 GB are no limit."""
    wide = {pa.binary(): pa.large_binary(), pa.string(): pa.large_string()}
    return {
        field.name: table.column(field.name).cast(wide.get(field.type, field.type)).combine_chunks()
        for field in table.schema
    }


def _size(name: str) -> int:
    digits = name.rpartition("_")[2]
    if not digits.isdigit():
        raise UserError(f"pixel column {name!r}: the name must end in its resolution, such as pixels_64")
    return int(digits)


def _read_pack(path: str, columns: tuple[str, ...]) -> pa.Table:
    table = read_table(path, "pack")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        have = ", ".join(name for name in table.column_names if name.startswith("pixels_")) or "none"
        raise UserError(f"{path}: no column {missing[0]} (pixel columns: {have}); add its size to pack.resolutions")
    return table.select(["key", "caption", "split", *columns])


def _read_embeddings(paths: Sequence[str], keys: pa.ChunkedArray) -> pa.Table:
    table = pa.concat_tables(read_table(path, "embeddings", EMBEDDING_COLUMNS) for path in paths)
    if not table.column("key").equals(keys):
        raise UserError("embeddings and pack shards do not have the same rows in the same order; run embed again")
    return table


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
