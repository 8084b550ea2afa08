"""Filters on the agreement of caption and image, by CLIP similarity."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from dataprep.filters.base import LIST_HAS, RowFilter, SetFilter, read_floats, round_limit
from dataprep.filters.exchange import NONE, VERDICT
from dataprep.filters.left_rows import LeftRows, Verdicts, iterate_left
from dataprep.filters.steps import OpenTask, write_parts
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

DIGIT = 16  # bits of a sort key that one pass fixes
DIGIT_COUNT = np.dtype([("digit", np.int64), ("count", np.int64)])
OR_SCORE = f"{LIST_HAS}, or set select.similarity=score"
REMEDIES = {
    "clip_similarity": ("select.similarity=score", "the score stage gives it; run it"),
    "listed_similarity_b32": ("select.similarity=listed_similarity_b32", OR_SCORE),
    "listed_similarity_l14": ("select.similarity=listed_similarity_l14", OR_SCORE),
}


class SimilarityKeys(Config):
    """The key shared by both filters."""

    similarity: Literal["score", "listed_similarity_b32", "listed_similarity_l14"] = Field(
        default="score", description="source of similarities: this run's CLIP, or the list's ViT-B/32 or ViT-L/14"
    )

    def similarity_column(self) -> str:
        """Returns the column to read."""
        return "clip_similarity" if self.similarity == "score" else self.similarity


class MinSimilarityKeys(SimilarityKeys):
    """Keys of `MinSimilarity`."""

    min_similarity: float | None = Field(
        default=None, ge=-1, le=1, description="minimum CLIP similarity; clip.min_similarity overrides it"
    )


class MinSimilarity(RowFilter):
    """Keeps pairs with a CLIP similarity of at least ``least``; drops pairs without one."""

    keys = MinSimilarityKeys
    off: ClassVar = {"min_similarity": None}
    remedies: ClassVar = REMEDIES
    catches = frozenset({"wrong_caption", "boilerplate"})

    def __init__(self, least: float, measured: str = "clip_similarity") -> None:
        self.least, self.columns = least, (measured,)

    @classmethod
    def from_config(cls, config: MinSimilarityKeys, available: Collection[str]) -> Self | None:
        return None if config.min_similarity is None else cls(config.min_similarity, config.similarity_column())

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        least = round_limit(rows, measured, self.least)
        return read_floats(rows, measured) >= least, f"CLIP similarity below {self.least:g}"


class TopSimilarityKeys(SimilarityKeys):
    """Keys of `TopSimilarity`."""

    top_similarity: float | None = Field(
        default=None, gt=0, le=1, description="keep this share by CLIP similarity (DataComp: 0.3)"
    )


@dataclass(frozen=True)
class TopSimilarity(SetFilter):
    """Keeps the ``fraction`` of pairs with the highest CLIP similarity, including ties with the last of them.

    DataComp's clip_score rule: at or above the value at the sorted index, over the pairs that earlier filters kept.
    Pairs without a similarity are dropped and do not count.
    """

    keys = TopSimilarityKeys
    off: ClassVar = {"top_similarity": None}
    remedies: ClassVar = REMEDIES
    catches = frozenset({"wrong_caption", "boilerplate"})

    fraction: float
    columns: tuple[str, ...] = ("clip_similarity",)

    @property
    def reason(self) -> str:
        return f"CLIP similarity not in the top {self.fraction:.0%}"

    @classmethod
    def from_config(cls, config: TopSimilarityKeys, available: Collection[str]) -> Self | None:
        return None if config.top_similarity is None else cls(config.top_similarity, (config.similarity_column(),))

    def decide(self, rows: LeftRows) -> Verdicts:
        arguments = {"measured": self.columns[0], "least": self._find_least(rows), "parts": 1}
        return Verdicts(rows.emit("below", DropBelow, arguments, self.columns), own=True)

    def _find_least(self, rows: LeftRows) -> float | None:
        """Returns the value at index ``count * fraction`` in descending order; None if no row has a value.

        Radix selection: each of four passes over the rows fixes 16 bits of the answer, for any number of rows.
        """
        prefix, rank = 0, -1
        for shift in range(64 - DIGIT, -1, -DIGIT):
            arguments = {"measured": self.columns[0], "shift": shift, "prefix": prefix, "parts": 1}
            counted = rows.emit(f"digits-{shift}", CountDigits, arguments, self.columns)
            count_D = np.zeros(1 << DIGIT, np.int64)
            for some in counted.iterate(0, DIGIT_COUNT):
                count_D[some["digit"]] += some["count"]
            if rank < 0:
                total = int(count_D.sum())
                if not total:
                    return None
                rank = min(int(total * self.fraction), total - 1)
            above_D = np.cumsum(count_D[::-1])  # values whose digit is at least the largest, the second largest, ...
            steps = int(np.searchsorted(above_D, rank, side="right"))
            rank -= int(above_D[steps - 1]) if steps else 0
            prefix = (prefix << DIGIT) | ((1 << DIGIT) - 1 - steps)
        return from_sort_key(prefix)


class CountDigits:
    """Worker: counts the values of a group's rows by `DIGIT` bits of their sort key; the bits above are ``prefix``."""

    def __init__(self, measured: str, shift: int, prefix: int, parts: int) -> None:
        self.measured, self.shift, self.prefix, self.parts = measured, shift, prefix, parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes one part of `DIGIT_COUNT`."""
        count_D = np.zeros(1 << DIGIT, np.int64)
        for _, rows in iterate_left(task, (self.measured,)):
            value_N = read_floats(rows, self.measured)
            key_N = to_sort_key(value_N[~np.isnan(value_N)])
            if self.shift + DIGIT < 64:
                key_N = key_N[key_N >> np.uint64(self.shift + DIGIT) == self.prefix]
            digit_N = (key_N >> np.uint64(self.shift)) & np.uint64((1 << DIGIT) - 1)
            count_D += np.bincount(digit_N.astype(np.int64), minlength=1 << DIGIT)
        digit_K = np.flatnonzero(count_D)
        counted_K = np.empty(len(digit_K), DIGIT_COUNT)
        counted_K["digit"], counted_K["count"] = digit_K, count_D[digit_K]
        return write_parts(task, [(counted_K, np.zeros(len(digit_K), np.int64))], DIGIT_COUNT, self.parts)


class DropBelow:
    """Worker: drops a group's rows below ``least`` or without a value."""

    def __init__(self, measured: str, least: float | None, parts: int) -> None:
        self.measured, self.least, self.parts = measured, least, parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the verdicts in one part."""
        return write_parts(task, self._drop(task), VERDICT, self.parts)

    def _drop(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for position_N, rows in iterate_left(task, (self.measured,)):
            value_N = read_floats(rows, self.measured)
            gone_N = ~(value_N >= self.least) if self.least is not None else np.ones(len(value_N), bool)
            verdict_K = np.empty(int(gone_N.sum()), VERDICT)
            verdict_K["position"], verdict_K["original"] = position_N[gone_N], NONE
            yield verdict_K, np.zeros(len(verdict_K), np.int64)


def to_sort_key(value_B: np.ndarray) -> np.ndarray:
    """Maps float64 to uint64 in the same order; minus zero equals zero."""
    bits_B = (value_B + 0.0).view(np.uint64)
    return np.where(bits_B >> np.uint64(63), ~bits_B, bits_B | np.uint64(1 << 63))


def from_sort_key(key: int) -> float:
    """Returns the value of a `to_sort_key`."""
    bits = key ^ (1 << 63) if key >> 63 else ~key & (2**64 - 1)
    return float(np.array(bits, np.uint64).view(np.float64))
