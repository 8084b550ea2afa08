"""Filters on how well caption and picture agree, by CLIP."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataprep.filters.base import column, limit
from dataprep.spill import Spill

BLOCK = 1 << 16  # rows read at a time
DIGIT = 16  # bits of a sort key that a pass decides


class MinSimilarity:
    """Keeps pairs with a CLIP similarity of at least ``least``; a pair without one goes."""

    name = "min_similarity"

    def __init__(self, least: float, measured: str = "clip_similarity") -> None:
        self.least, self.columns = least, (measured,)

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        least = limit(rows, measured, self.least)
        return column(rows, measured) >= least, f"CLIP similarity below {self.least:g}"


class TopSimilarity:
    """Keeps the ``fraction`` of the pairs with the highest CLIP similarity, ties with the last of them too.

    DataComp's clip_score rule: at or above the value at the sorted index, over the pairs that earlier filters left.
    A pair without a similarity goes, and does not count.
    """

    name = "top_similarity"

    def __init__(self, fraction: float, measured: str = "clip_similarity") -> None:
        self.fraction, self.columns = fraction, (measured,)
        self.reason = f"CLIP similarity not in the top {fraction:.0%}"

    def keys(self, rows: pa.Table) -> dict[str, np.ndarray]:
        return {"similarity": column(rows, *self.columns)}

    def drop(self, spill: Spill, left_M: np.ndarray) -> None:
        for position_B, value_B in spill.blocks("similarity", left_M, BLOCK):
            left_M[position_B[np.isnan(value_B)]] = False
        count = int(left_M.sum())
        if count:
            least = nth_largest(spill, "similarity", left_M, min(int(count * self.fraction), count - 1))
            for position_B, value_B in spill.blocks("similarity", left_M, BLOCK):
                left_M[position_B[value_B < least]] = False


def nth_largest(spill: Spill, name: str, left_M: np.ndarray, rank: int) -> float:
    """The value at index ``rank`` of the column in descending order, over the rows that are left.

    A radix selection: each of four passes over the file decides 16 bits of the answer, whatever the number of rows.
    """
    prefix = 0
    for shift in range(64 - DIGIT, -1, -DIGIT):
        count_D = np.zeros(1 << DIGIT, np.int64)
        for _, value_B in spill.blocks(name, left_M, BLOCK):
            key_B = sort_key(value_B)
            same_B = (key_B >> np.uint64(shift + DIGIT) == prefix) if shift + DIGIT < 64 else np.ones(len(key_B), bool)
            digit_B = (key_B[same_B] >> np.uint64(shift)) & np.uint64((1 << DIGIT) - 1)
            count_D += np.bincount(digit_B.astype(np.int64), minlength=1 << DIGIT)
        above_D = np.cumsum(count_D[::-1])  # values whose digit is at least the largest, the second largest, ...
        steps = int(np.searchsorted(above_D, rank, side="right"))
        rank -= int(above_D[steps - 1]) if steps else 0
        prefix = (prefix << DIGIT) | ((1 << DIGIT) - 1 - steps)
    bits = prefix ^ (1 << 63) if prefix >> 63 else ~prefix & (2**64 - 1)
    return float(np.array(bits, np.uint64).view(np.float64))


def sort_key(value_B: np.ndarray) -> np.ndarray:
    """uint64 in the order of the float64 values; minus zero counts as zero."""
    bits_B = (value_B + 0.0).view(np.uint64)
    return np.where(bits_B >> np.uint64(63), ~bits_B, bits_B | np.uint64(1 << 63))
