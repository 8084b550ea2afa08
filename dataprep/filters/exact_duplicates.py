"""Filters on exact repetition: captions, pairs of URL and caption, stored files.

Exact in bounded memory: each row is exchanged as a 128-bit digest, and rows of one digest meet in one part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.filters.base import SetFilter
from dataprep.filters.exchange import Parts, count_parts
from dataprep.filters.left_rows import LeftRows, Verdicts, iterate_left, write_verdicts
from dataprep.filters.pair_shards import Groups
from dataprep.filters.steps import OpenTask, write_parts
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST_BYTES = 16
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8"), ("position", np.int64)])


@dataclass(frozen=True)
class RepeatedValue(SetFilter):
    """Keeps the first ``most`` rows of each value, compared by `digest_rows`."""

    most: int = 1

    def digest_rows(self, rows: pa.Table) -> bytes:
        """Returns the rows' digests, `DIGEST_BYTES` each; equal values have equal ones."""
        raise NotImplementedError

    def decide(self, rows: LeftRows) -> Verdicts:
        parts = count_parts(rows.count, DIGEST.itemsize)
        digests = rows.emit("digests", EmitDigests, {"rule": self, "parts": parts}, self.columns)
        return rows.decide("repeats", FindRepeats, {"digests": digests, "most": self.most}, parts)


class EmitDigests:
    """Worker: deals out the digests of a group's rows by their first bits."""

    def __init__(self, rule: RepeatedValue, parts: int) -> None:
        self.rule, self.parts = rule, parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `DIGEST`."""
        return write_parts(task, self._deal(task), DIGEST, self.parts)

    def _deal(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for position_N, rows in iterate_left(task, self.rule.columns):
            words_N2 = np.frombuffer(self.rule.digest_rows(rows), ">u8").reshape(-1, 2)
            digest_N = np.empty(len(position_N), DIGEST)
            digest_N["high"], digest_N["low"], digest_N["position"] = words_N2[:, 0], words_N2[:, 1], position_N
            yield digest_N, ((words_N2[:, 0] >> np.uint64(32)) * np.uint64(self.parts)) >> np.uint64(32)


class FindRepeats:
    """Worker: finds the rows after the first ``most`` of each digest in a part."""

    def __init__(self, digests: Parts, most: int, groups: Groups) -> None:
        self.digests, self.most, self.groups = digests, most, groups

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the verdicts; a row repeats the first of its digest."""
        digest_N = self.digests.read(task.id, DIGEST)
        high_N, low_N = digest_N["high"].astype(np.uint64), digest_N["low"].astype(np.uint64)
        order_N = np.argsort(high_N, kind="stable")  # rows come in their order
        high_N, low_N = high_N[order_N], low_N[order_N]
        again_N = np.concatenate([[False], high_N[1:] == high_N[:-1]])[: len(high_N)]
        if (again_N[1:] & (low_N[1:] != low_N[:-1])).any():  # among 10^10 rows some digests agree in their first half
            order_N = order_N[np.lexsort((low_N, high_N))]
            high_N, low_N = digest_N["high"][order_N], digest_N["low"][order_N]
            again_N[1:] = (high_N[1:] == high_N[:-1]) & (low_N[1:] == low_N[:-1])
        position_N = digest_N["position"][order_N]
        first_N = np.maximum.accumulate(np.where(again_N, 0, np.arange(len(again_N))))
        late_N = np.arange(len(again_N)) - first_N >= self.most
        return write_verdicts(task, self.groups, position_N[late_N], position_N[first_N[late_N]])


class DuplicatePairKeys(Config):
    """Keys of `DuplicatePair`."""

    duplicate_pairs: bool = Field(default=False, description="drop rows whose URL and caption both occurred before")


@dataclass(frozen=True)
class DuplicatePair(RepeatedValue):
    """Drops rows whose URL and caption both occurred before."""

    keys = DuplicatePairKeys
    off: ClassVar = {"duplicate_pairs": False}
    columns = ("url", "caption")
    reason = "the same URL and caption as an earlier row"

    @classmethod
    def from_config(cls, config: DuplicatePairKeys, available: Collection[str]) -> Self | None:
        return cls() if config.duplicate_pairs else None

    def digest_rows(self, rows: pa.Table) -> bytes:
        pairs = zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)
        return b"".join([_digest_text(f"{len(url)} {url} {caption}") for url, caption in pairs])


class RepeatedCaptionKeys(Config):
    """Keys of `RepeatedCaption`."""

    max_caption_repeats: int | None = Field(default=None, ge=1, description="maximum rows per caption; null: no limit")


@dataclass(frozen=True)
class RepeatedCaption(RepeatedValue):
    """Keeps the first ``most`` rows of a caption, compared without regard to case and spaces."""

    keys = RepeatedCaptionKeys
    off: ClassVar = {"max_caption_repeats": None}
    catches = frozenset({"boilerplate"})
    columns = ("caption",)

    @property
    def reason(self) -> str:
        return f"caption stood {self.most} times before"

    @classmethod
    def from_config(cls, config: RepeatedCaptionKeys, available: Collection[str]) -> Self | None:
        return None if config.max_caption_repeats is None else cls(config.max_caption_repeats)

    def digest_rows(self, rows: pa.Table) -> bytes:
        return b"".join([_digest_text(" ".join(caption.casefold().split())) for caption in rows["caption"].to_pylist()])


class ExactDuplicateKeys(Config):
    """Keys of `ExactDuplicate`."""

    exact_duplicates: bool = Field(default=True, description="drop images whose stored bytes occurred before")


@dataclass(frozen=True)
class ExactDuplicate(RepeatedValue):
    """Drops rows whose stored file has the bytes of an earlier one."""

    keys = ExactDuplicateKeys
    off: ClassVar = {"exact_duplicates": False}
    catches = frozenset({"exact_duplicate", "near_duplicate"})
    columns = ("sha256",)
    reason = "the same bytes as an earlier image"

    @classmethod
    def from_config(cls, config: ExactDuplicateKeys, available: Collection[str]) -> Self | None:
        return cls() if config.exact_duplicates else None

    def digest_rows(self, rows: pa.Table) -> bytes:
        return bytes.fromhex("".join([digest[: 2 * DIGEST_BYTES] for digest in rows["sha256"].to_pylist()]))


def _digest_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()
