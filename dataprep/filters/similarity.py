"""Filters on the agreement of caption and image, by CLIP similarity."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from dataprep.filters.base import LIST_HAS, RowFilter, SetFilter, read_floats, round_limit
from dataprep.filters.column_store import ColumnStore
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1 << 16  # rows read at a time
DIGIT = 16  # bits of a sort key that one pass fixes
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


class TopSimilarity(SetFilter):
    """Keeps the ``fraction`` of pairs with the highest CLIP similarity, including ties with the last of them.

    DataComp's clip_score rule: at or above the value at the sorted index, over the pairs that earlier filters kept.
    Pairs without a similarity are dropped and do not count.
    """

    keys = TopSimilarityKeys
    off: ClassVar = {"top_similarity": None}
    remedies: ClassVar = REMEDIES
    catches = frozenset({"wrong_caption", "boilerplate"})

    def __init__(self, fraction: float, measured: str = "clip_similarity") -> None:
        self.fraction, self.columns = fraction, (measured,)
        self.reason = f"CLIP similarity not in the top {fraction:.0%}"

    @classmethod
    def from_config(cls, config: TopSimilarityKeys, available: Collection[str]) -> Self | None:
        return None if config.top_similarity is None else cls(config.top_similarity, config.similarity_column())

    def extract(self, rows: pa.Table) -> dict[str, np.ndarray]:
        return {"similarity": read_floats(rows, *self.columns)}

    def drop(self, store: ColumnStore, left_M: np.ndarray) -> None:
        for position_B, value_B in store.read_blocks("similarity", left_M, BLOCK):
            left_M[position_B[np.isnan(value_B)]] = False
        count = int(left_M.sum())
        if count:
            least = find_nth_largest(store, "similarity", left_M, min(int(count * self.fraction), count - 1))
            for position_B, value_B in store.read_blocks("similarity", left_M, BLOCK):
                left_M[position_B[value_B < least]] = False


def find_nth_largest(store: ColumnStore, name: str, left_M: np.ndarray, rank: int) -> float:
    """Returns the value at index ``rank`` of the column in descending order, over the rows that are left.

    Radix selection: each of four passes over the file fixes 16 bits of the answer, for any number of rows.
    """
    prefix = 0
    for shift in range(64 - DIGIT, -1, -DIGIT):
        count_D = np.zeros(1 << DIGIT, np.int64)
        for _, value_B in store.read_blocks(name, left_M, BLOCK):
            key_B = to_sort_key(value_B)
            same_B = (key_B >> np.uint64(shift + DIGIT) == prefix) if shift + DIGIT < 64 else np.ones(len(key_B), bool)
            digit_B = (key_B[same_B] >> np.uint64(shift)) & np.uint64((1 << DIGIT) - 1)
            count_D += np.bincount(digit_B.astype(np.int64), minlength=1 << DIGIT)
        above_D = np.cumsum(count_D[::-1])  # values whose digit is at least the largest, the second largest, ...
        steps = int(np.searchsorted(above_D, rank, side="right"))
        rank -= int(above_D[steps - 1]) if steps else 0
        prefix = (prefix << DIGIT) | ((1 << DIGIT) - 1 - steps)
    bits = prefix ^ (1 << 63) if prefix >> 63 else ~prefix & (2**64 - 1)
    return float(np.array(bits, np.uint64).view(np.float64))


def to_sort_key(value_B: np.ndarray) -> np.ndarray:
    """Maps float64 to uint64 in the same order; minus zero equals zero."""
    bits_B = (value_B + 0.0).view(np.uint64)
    return np.where(bits_B >> np.uint64(63), ~bits_B, bits_B | np.uint64(1 << 63))
