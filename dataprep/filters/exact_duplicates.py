"""Filters on exact repetition: captions, pairs of URL and caption, stored files.

Exact in bounded memory: each row is stored as a 128-bit digest, digests are partitioned on disk by their first bits,
and occurrences are counted one partition at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.filters.base import SetFilter
from dataprep.filters.column_store import ColumnStore
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST_BYTES = 16
BLOCK = 1 << 16  # rows read at a time
PARTITION_ROWS = 1 << 16  # mean rows per partition


class RepeatedValue(SetFilter):
    """Keeps the first ``most`` rows of each value, compared by `digest_rows`."""

    digest_column: ClassVar[str]  # in the column store

    def __init__(self, most: int = 1) -> None:
        self.most = most

    def digest_rows(self, rows: pa.Table) -> list[bytes]:
        """Returns `DIGEST_BYTES` per row; equal values have equal digests."""
        raise NotImplementedError

    def extract(self, rows: pa.Table) -> dict[str, np.ndarray]:
        digests = np.frombuffer(b"".join(self.digest_rows(rows)), np.uint8)
        return {self.digest_column: digests.reshape(rows.num_rows, DIGEST_BYTES)}

    def drop(self, store: ColumnStore, left_M: np.ndarray) -> None:
        count = max(1, int(left_M.sum()) // PARTITION_ROWS)
        partitions = store.partition(
            self.digest_column, left_M, lambda digest_B: _hash_digests(digest_B) % count, count, BLOCK
        )
        for partition in partitions:
            seen: dict[bytes, int] = {}
            for position_B, digest_B in partition:
                data = digest_B.tobytes()
                for index, position in enumerate(position_B.tolist()):
                    digest = data[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
                    seen[digest] = times = seen.get(digest, 0) + 1
                    if times > self.most:
                        left_M[position] = False


class DuplicatePairKeys(Config):
    """Keys of `DuplicatePair`."""

    duplicate_pairs: bool = Field(default=False, description="drop rows whose URL and caption both occurred before")


class DuplicatePair(RepeatedValue):
    """Drops rows whose URL and caption both occurred before."""

    keys = DuplicatePairKeys
    off: ClassVar = {"duplicate_pairs": False}
    columns = ("url", "caption")
    reason = "the same URL and caption as an earlier row"
    digest_column = "pair_digest"

    @classmethod
    def from_config(cls, config: DuplicatePairKeys, available: Collection[str]) -> Self | None:
        return cls() if config.duplicate_pairs else None

    def digest_rows(self, rows: pa.Table) -> list[bytes]:
        pairs = zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)
        return [_digest_text(f"{len(url)} {url} {caption}") for url, caption in pairs]


class RepeatedCaptionKeys(Config):
    """Keys of `RepeatedCaption`."""

    max_caption_repeats: int | None = Field(default=None, ge=1, description="maximum rows per caption; null: no limit")


class RepeatedCaption(RepeatedValue):
    """Keeps the first ``most`` rows of a caption, compared without regard to case and spaces."""

    keys = RepeatedCaptionKeys
    off: ClassVar = {"max_caption_repeats": None}
    catches = frozenset({"boilerplate"})
    columns = ("caption",)
    digest_column = "caption_digest"

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.reason = f"caption stood {most} times before"

    @classmethod
    def from_config(cls, config: RepeatedCaptionKeys, available: Collection[str]) -> Self | None:
        return None if config.max_caption_repeats is None else cls(config.max_caption_repeats)

    def digest_rows(self, rows: pa.Table) -> list[bytes]:
        return [_digest_text(" ".join(caption.casefold().split())) for caption in rows["caption"].to_pylist()]


class ExactDuplicateKeys(Config):
    """Keys of `ExactDuplicate`."""

    exact_duplicates: bool = Field(default=True, description="drop images whose stored bytes occurred before")


class ExactDuplicate(RepeatedValue):
    """Drops rows whose stored file has the bytes of an earlier one."""

    keys = ExactDuplicateKeys
    off: ClassVar = {"exact_duplicates": False}
    catches = frozenset({"exact_duplicate", "near_duplicate"})
    columns = ("sha256",)
    reason = "the same bytes as an earlier image"
    digest_column = "sha256_digest"

    @classmethod
    def from_config(cls, config: ExactDuplicateKeys, available: Collection[str]) -> Self | None:
        return cls() if config.exact_duplicates else None

    def digest_rows(self, rows: pa.Table) -> list[bytes]:
        return [bytes.fromhex(digest[: 2 * DIGEST_BYTES]) for digest in rows["sha256"].to_pylist()]


def _hash_digests(digest_B: np.ndarray) -> np.ndarray:
    """Returns a number that equal digests share: their first four bytes."""
    return np.ascontiguousarray(digest_B[:, :4]).view("<u4")[:, 0]


def _digest_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()
