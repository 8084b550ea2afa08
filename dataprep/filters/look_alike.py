"""Base of filters on images that look alike: the first of each set of near duplicates is kept.

A row is dropped if an earlier kept row is alike; dropped rows do not count. A chain of small changes therefore keeps
every row that is far from all kept rows. Which rows are kept follows from their order, but only rows that a chain of
similar ones connects have a say in each other: a filter first links rows that may be alike (`LookAlike.link`), then
each connected component is decided in order by one task (`LookAlike.find_originals`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataprep.filters.base import SetFilter
from dataprep.filters.components import EDGE, find_components
from dataprep.filters.exchange import NONE, Parts, count_parts, spread
from dataprep.filters.left_rows import LeftRows, Verdicts, iterate_left, write_verdicts
from dataprep.filters.pair_shards import Groups
from dataprep.filters.steps import OpenTask, write_parts

if TYPE_CHECKING:
    import pyarrow as pa

Described = tuple[tuple[str, str, tuple[int, ...]], ...]  # name, dtype and shape of each value of a row


@dataclass(frozen=True)
class LookAlike(SetFilter):
    """A filter that drops rows that are alike to an earlier kept row."""

    def link(self, rows: LeftRows) -> Parts | None:
        """Returns edges, as `components.find_components` takes them, that connect all rows that may be alike.

        None: any two rows may be alike, and one task decides on all of them.
        """
        raise NotImplementedError

    def describe_member(self, rows: LeftRows) -> Described:
        """Returns name, dtype and shape of what `extract` returns of a row."""
        raise NotImplementedError

    def extract(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """Returns arrays (N, ...) of what decides whether rows are alike."""
        raise NotImplementedError

    def find_originals(self, members: Iterator[np.ndarray], folder: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of the rows to drop, and for each the first kept row that it is alike to.

        Args:
            members: records of label, position and what `extract` returned, by position; all of a component.
            folder: for temporary files.
        """
        raise NotImplementedError

    def decide(self, rows: LeftRows) -> Verdicts:
        edges = self.link(rows)
        labels = find_components(rows, edges) if edges is not None else None
        described = self.describe_member(rows)
        dtype = make_member_dtype(described)
        parts = count_parts(labels.records, dtype.itemsize) if labels is not None else 1
        arguments = {"rule": self, "labels": labels, "described": described, "parts": parts}
        members = rows.emit("members", EmitMembers, arguments, self.columns)
        return rows.decide("first", KeepFirst, {"rule": self, "members": members, "described": described}, parts)


def make_member_dtype(described: Described) -> np.dtype:
    """Returns the dtype of a row's record, of what `LookAlike.describe_member` returned."""
    return np.dtype([("label", np.int64), ("position", np.int64), *described])


class EmitMembers:
    """Worker: deals out the rows of a group that are linked to others, by their component."""

    def __init__(self, rule: LookAlike, labels: Parts | None, described: Described, parts: int) -> None:
        self.rule, self.labels, self.dtype, self.parts = rule, labels, make_member_dtype(described), parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `make_member_dtype`."""
        return write_parts(task, self._deal(task), self.dtype, self.parts)

    def _deal(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        label_K = None
        if self.labels is not None:
            label_K = self.labels.read(task.id, EDGE)
            label_K = label_K[np.argsort(label_K["node"])]
        for position_N, rows in iterate_left(task, self.rule.columns):
            linked_M, label_M = np.arange(len(position_N)), np.zeros(len(position_N), np.int64)
            if label_K is not None:
                place_N = np.minimum(np.searchsorted(label_K["node"], position_N), max(0, len(label_K) - 1))
                linked_M = np.flatnonzero(label_K["node"][place_N] == position_N) if len(label_K) else linked_M[:0]
                label_M = label_K["to"][place_N[linked_M]] if len(label_K) else label_M[:0]
            if len(linked_M):
                member_M = np.empty(len(linked_M), self.dtype)
                member_M["label"], member_M["position"] = label_M, position_N[linked_M]
                for name, value_M in self.rule.extract(rows.take(linked_M)).items():
                    member_M[name] = value_M
                yield member_M, spread(label_M, self.parts)


class KeepFirst:
    """Worker: decides on all components of a part."""

    def __init__(self, rule: LookAlike, members: Parts, described: Described, groups: Groups) -> None:
        self.rule, self.members, self.dtype, self.groups = rule, members, make_member_dtype(described), groups

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the verdicts."""
        # Groups come in the order of their rows, and each wrote its rows in order.
        found = self.rule.find_originals(self.members.iterate(task.id, self.dtype), str(task.out))
        return write_verdicts(task, self.groups, *found)


def keep_first(
    later_P: np.ndarray,
    earlier_P: np.ndarray,
    original_B: np.ndarray,
    is_alike: Callable[[int, np.ndarray], np.ndarray],
) -> None:
    """Sets the original of the later row of every pair whose earlier row is kept and ``is_alike`` to it, in order.

    ``original_B`` is `NONE` for kept rows. Rows that have an original keep it.
    """
    order_P = np.argsort(earlier_P, kind="stable")
    later_P, earlier_P = later_P[order_P], earlier_P[order_P]
    rows, begins = np.unique(earlier_P, return_index=True)
    for row, begin, end in zip(rows.tolist(), begins, np.append(begins, len(later_P))[1:], strict=True):
        if original_B[row] == NONE:
            later = np.unique(later_P[begin:end])
            later = later[original_B[later] == NONE]
            if len(later):
                original_B[later[is_alike(row, later)]] = row
