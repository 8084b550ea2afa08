"""Files by which the steps of a selection exchange records.

A step writes one file of numbered parts; a task of the next step reads its part of the files of all tasks before it.
So rows are dealt out by hash, by cluster or by group through the run's storage, while a task holds its own part alone.
Of many rows a part is larger than memory should be, since files times parts are reads: its task then deals it out once
more on its own disk, and holds a piece at a time (`Division`).
A file holds the position in bytes of each part and of the end (int64, parts + 1), then the records, part by part.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from dataprep.io import storage

VERDICT = np.dtype([("position", np.int64), ("original", np.int64)])  # a dropped row, and the one it repeats or NONE
NONE = -1
PART_BYTES = 16 << 20  # mean bytes of a part, or of a piece of one: what a task holds, before copies
MAX_PARTS = 4096  # files times parts are reads
CHUNK_BYTES = 32 << 20  # records that a writer holds before it deals them out
BATCH = 256  # files that are read together
OFFSET = 8  # bytes of an offset


@dataclass(frozen=True)
class Parts:
    """The files that a step wrote, in the order of its tasks, each with ``count`` parts; ``records`` in all of them."""

    paths: tuple[str, ...]
    count: int
    records: int

    def iterate(self, number: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Yields part ``number`` of each file that has records in it."""
        for start in range(0, len(self.paths), BATCH):
            found = [storage.filesystem(path) for path in self.paths[start : start + BATCH]]
            fs, inner = found[0][0], [path for _, path in found]
            places = [OFFSET * number] * len(inner), [OFFSET * (number + 2)] * len(inner)
            ends = [np.frombuffer(data, np.int64) for data in fs.cat_ranges(inner, *places, on_error="raise")]
            filled = [place for place, (begin, end) in enumerate(ends) if end > begin]
            ranges = [[int(ends[place][side]) for place in filled] for side in (0, 1)]
            for some in _cut_reads(np.subtract(ranges[1], ranges[0])):
                names = [inner[place] for place in filled[some]]
                for data in fs.cat_ranges(names, *(side[some] for side in ranges), on_error="raise"):
                    yield np.frombuffer(data, dtype)

    def read(self, number: int, dtype: np.dtype) -> np.ndarray:
        """Returns part ``number`` of all files, one after the other."""
        return np.concatenate([np.zeros(0, dtype), *self.iterate(number, dtype)])


def _cut_reads(size_F: np.ndarray) -> Iterator[slice]:
    """Yields which of the reads of these sizes to make together: about `PART_BYTES`."""
    cut_F = np.cumsum(size_F) // PART_BYTES
    starts = [0, *(np.flatnonzero(np.diff(cut_F)) + 1).tolist()] if len(size_F) else []
    yield from map(slice, starts, [*starts[1:], len(size_F)])


def count_parts(records: int, record_bytes: int) -> int:
    """Returns how many parts ``records`` in total are worth; of more than `MAX_PARTS` parts they are larger."""
    return min(count_shares(records, record_bytes), MAX_PARTS)


def count_shares(records: int, record_bytes: int) -> int:
    """Returns in how many shares of `PART_BYTES` records can be held one at a time."""
    return max(1, -(-records * record_bytes // PART_BYTES))


@dataclass(frozen=True)
class Division:
    """Records as ``parts`` that are exchanged, each in ``pieces`` that its task holds one at a time."""

    parts: int
    pieces: int

    @property
    def shares(self) -> int:
        """All pieces of all parts."""
        return self.parts * self.pieces

    def read(
        self, parts: Parts, number: int, dtype: np.dtype, find_piece: Callable[[np.ndarray], np.ndarray], folder: Path
    ) -> Iterator[np.ndarray]:
        """Yields part ``number`` of ``parts`` piece by piece; ``find_piece`` returns the piece of each record.

        More than one piece lies in the local ``folder`` meanwhile.
        """
        if self.pieces == 1:
            yield parts.read(number, dtype)
            return
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with PartWriter(Path(scratch) / "pieces.bin", dtype, self.pieces) as writer:
                for record_N in parts.iterate(number, dtype):
                    writer.add(record_N, find_piece(record_N))
            pieces = Parts((str(writer.path),), self.pieces, writer.records)
            for piece in range(self.pieces):
                yield pieces.read(piece, dtype)


def divide(records: int, record_bytes: int, copies: int = 1) -> Division:
    """Returns how to exchange ``records`` so that a piece has about `PART_BYTES`.

    Each record is exchanged in ``copies``, and each copy has as many parts of its own.
    """
    shares = count_shares(records, record_bytes)
    parts = min(shares, max(1, MAX_PARTS // copies))
    return Division(parts, -(-shares // parts))


def spread(value_N: np.ndarray, parts: int) -> np.ndarray:
    """Returns a part for each integer, evenly for any values (the finaliser of MurmurHash3)."""
    mixed_N = value_N.astype(np.uint64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(33))) * np.uint64(factor)
    return ((mixed_N ^ (mixed_N >> np.uint64(33))) % np.uint64(parts)).astype(np.int64)


class PartWriter:
    """Writes records of one dtype into the numbered parts of a file; a part keeps the order of its records.

    Holds `CHUNK_BYTES` of records; more are on the disk of ``path``. The file is there after a block without error.
    """

    def __init__(self, path: str | Path, dtype: np.dtype, parts: int) -> None:
        assert parts <= 1 << 16, parts
        self.path, self.dtype, self.parts = Path(path), dtype, parts
        self.records = 0
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self._held_bytes = 0
        self._ends: list[np.ndarray] = []  # per chunk: positions of its parts in the spool, and of its end
        self._spool = open(self.path.with_suffix(".spool"), "w+b")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Self:
        return self

    def add(self, record_N: np.ndarray, number_N: np.ndarray) -> None:
        """Adds records to the parts ``number_N``."""
        assert record_N.dtype == self.dtype, (record_N.dtype, self.dtype)
        self.records += len(record_N)
        self._held.append((record_N, number_N))
        self._held_bytes += record_N.nbytes
        if self._held_bytes >= CHUNK_BYTES:
            self._write_chunk()

    def _write_chunk(self) -> None:
        record_N = np.concatenate([np.zeros(0, self.dtype), *(record for record, _ in self._held)])
        numbers = [number.astype(np.uint16) for _, number in self._held]  # numpy sorts 16 bits in linear time
        number_N = np.concatenate([np.zeros(0, np.uint16), *numbers])
        order_N = np.argsort(number_N, kind="stable")
        ends = np.searchsorted(number_N[order_N], np.arange(self.parts + 1))
        self._ends.append(self._spool.tell() + ends * self.dtype.itemsize)
        self._spool.write(record_N[order_N].tobytes())
        self._held, self._held_bytes = [], 0

    def __exit__(self, kind: object, *_: object) -> None:
        with self._spool:
            if kind is None:
                self._write_chunk()
                self._assemble()
        os.unlink(self._spool.name)

    def _assemble(self) -> None:
        """Copies the parts of all chunks into the file, part by part."""
        self._spool.flush()
        size_P = sum(np.diff(ends) for ends in self._ends)
        begin_P = (self.parts + 1) * OFFSET + np.concatenate([[0], np.cumsum(size_P)])
        with open(self.path, "wb") as file:
            file.write(begin_P.astype(np.int64).tobytes())
            for number in range(self.parts):
                for ends in self._ends:
                    begin, end = int(ends[number]), int(ends[number + 1])
                    if end > begin:
                        file.write(os.pread(self._spool.fileno(), end - begin, begin))
