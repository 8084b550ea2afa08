"""Filters on what stood there before, letter by letter or byte by byte: captions, pairs, files.

Exact in bounded memory: a row is known by a 128-bit digest; digests are dealt into buckets on disk by their first
bits, and within a bucket a table counts what was seen.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataprep.spill import Spill

DIGEST_BYTES = 16
BLOCK = 1 << 16  # rows read at a time
BUCKET_ROWS = 1 << 16  # rows a bucket, on average
RECORD = np.dtype([("position", np.int64), ("digest", np.uint8, DIGEST_BYTES)])


class Repeated:
    """Keeps the first ``most`` rows of each value of ``columns``, as ``digests`` sees it."""

    def __init__(
        self,
        name: str,
        columns: tuple[str, ...],
        digests: Callable[[pa.Table], list[bytes]],
        reason: str,
        most: int = 1,
    ) -> None:
        self.name, self.columns, self.digests, self.reason, self.most = name, columns, digests, reason, most

    def keys(self, rows: pa.Table) -> dict[str, np.ndarray]:
        digests = np.frombuffer(b"".join(self.digests(rows)), np.uint8)
        return {self.name: digests.reshape(rows.num_rows, DIGEST_BYTES)}

    def drop(self, spill: Spill, left_M: np.ndarray) -> None:
        for bucket in _buckets(spill, self.name, left_M):
            seen: dict[bytes, int] = {}
            for record_B in bucket:
                data = record_B["digest"].tobytes()
                for index, position in enumerate(record_B["position"].tolist()):
                    digest = data[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
                    seen[digest] = times = seen.get(digest, 0) + 1
                    if times > self.most:
                        left_M[position] = False


def exact_duplicates() -> Repeated:
    """Drops rows whose stored file was seen before, byte by byte."""
    return Repeated("exact_duplicate", ("sha256",), _sha256, "the same bytes as an earlier image")


def repeated_captions(most: int) -> Repeated:
    """Keeps the first ``most`` rows of a caption; case and spaces do not tell captions apart."""
    reason = f"caption stood {most} times before"
    return Repeated("repeated_caption", ("caption",), _captions, reason, most)


def duplicate_pairs() -> Repeated:
    """Drops rows whose URL and caption, both, were seen before."""
    return Repeated("duplicate_pair", ("url", "caption"), _pairs, "the same URL and caption as an earlier row")


def _sha256(rows: pa.Table) -> list[bytes]:
    return [bytes.fromhex(digest[: 2 * DIGEST_BYTES]) for digest in rows["sha256"].to_pylist()]


def _captions(rows: pa.Table) -> list[bytes]:
    return [_digest(" ".join(caption.casefold().split())) for caption in rows["caption"].to_pylist()]


def _pairs(rows: pa.Table) -> list[bytes]:
    pairs = zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)
    return [_digest(f"{len(url)} {url} {caption}") for url, caption in pairs]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _buckets(spill: Spill, name: str, left_M: np.ndarray) -> Iterator[Iterator[np.ndarray]]:
    """Yields buckets, each an iterator over blocks of `RECORD` in the rows' order; equal digests share a bucket."""
    count = max(1, int(left_M.sum()) // BUCKET_ROWS)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-", dir=spill.folder) as folder:
        for position_B, digest_B in spill.blocks(name, left_M, BLOCK):
            record_B = np.empty(len(position_B), RECORD)
            record_B["position"], record_B["digest"] = position_B, digest_B
            bucket_B = np.ascontiguousarray(digest_B[:, :4]).view("<u4")[:, 0] % count
            order_B = np.argsort(bucket_B, kind="stable")
            ends = np.searchsorted(bucket_B[order_B], np.arange(count + 1))
            for bucket in np.flatnonzero(np.diff(ends)).tolist():
                with open(Path(folder) / str(bucket), "ab") as file:
                    file.write(record_B[order_B[ends[bucket] : ends[bucket + 1]]].tobytes())
        for bucket in range(count):
            yield _read_records(Path(folder) / str(bucket))


def _read_records(path: Path) -> Iterator[np.ndarray]:
    if path.exists():
        with open(path, "rb") as file:
            while data := file.read(BLOCK * RECORD.itemsize):
                yield np.frombuffer(data, RECORD)
