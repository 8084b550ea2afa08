"""Filters on what stood there before, letter by letter or byte by byte: captions, pairs, files.

Exact in bounded memory: a row is known by a 128-bit digest; digests are dealt into buckets on disk by their first
bits, and within a bucket a table counts what was seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from dataprep.spill import Spill

DIGEST_BYTES = 16
BLOCK = 1 << 16  # rows read at a time
BUCKET_ROWS = 1 << 16  # rows a bucket, on average


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
        count = max(1, int(left_M.sum()) // BUCKET_ROWS)
        for bucket in spill.deal(self.name, left_M, lambda digest_B: _number(digest_B) % count, count, BLOCK):
            seen: dict[bytes, int] = {}
            for position_B, digest_B in bucket:
                data = digest_B.tobytes()
                for index, position in enumerate(position_B.tolist()):
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


def _number(digest_B: np.ndarray) -> np.ndarray:
    """A number that equal digests share: their first four bytes."""
    return np.ascontiguousarray(digest_B[:, :4]).view("<u4")[:, 0]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()
