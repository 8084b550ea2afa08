"""Order of rows where several sources are mixed by weight, with the same properties as `train.loader.sampler`.

Every source has its own endless stream, shuffled as in `SampleOrder`; each position of the whole stream is of one of
them. Of any n positions from the start, a source with share w has n w, up to one for each source before it: the first
source takes the positions at which floor(p w + a) grows, a line of slope w drawn in whole numbers; the others share the
rest in the same way. The offset a in [0, 1) is drawn from the seed. All of it is in integers, so it is exact at any
position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.loader.sampler import WHOLE, SampleOrder, Share, sample_seed

UNIT = 1 << 20  # shares are multiples of 1 / UNIT; positions may go up to 2^43


class SourceMix(NamedTuple):
    """The source of each row group, as a number, and the weight of each source; both as arrays."""

    source_of: np.ndarray  # int (groups,)
    weights: np.ndarray  # float (sources,)

    def select(self, groups: np.ndarray, group_rows: np.ndarray) -> tuple[SourceMix, int]:
        """Returns the mix of some of the row groups, and how many rows they get of an epoch of all.

        A source's weight is spread over its rows: it counts here as far as its rows are here.
        """
        all_rows = np.bincount(self.source_of, group_rows, len(self.weights))
        own_rows = np.bincount(self.source_of[groups], group_rows[groups], len(self.weights))
        weights = self.weights / self.weights.sum() * own_rows / np.maximum(1, all_rows)
        present, source_of = np.unique(self.source_of[groups], return_inverse=True)
        return SourceMix(source_of, weights[present]), max(1, round(weights.sum() * group_rows.sum()))


class MixedOrder:
    """As `SampleOrder`, for row groups of the sources of ``mix``, each of which has at least one row.

    An epoch has ``rows`` positions, by default as many as there are rows. Rows of a source come once before any comes
    again, whatever the epoch of the whole. The windows of the sources are of ``window_groups`` together, shared by
    weight, so that they advance alike.
    """

    CACHED = SampleOrder.CACHED

    def __init__(
        self,
        group_rows: Sequence[int] | np.ndarray,
        mix: SourceMix,
        window_groups: int,
        seed: int,
        rows: int | None = None,
    ) -> None:
        self.group_rows, self.seed = np.asarray(group_rows, np.int64), seed
        self.first = np.concatenate([[0], np.cumsum(self.group_rows)])
        self.rows = int(self.first[-1]) if rows is None else rows
        shares = mix.weights / mix.weights.sum()
        self.members = [np.flatnonzero(mix.source_of == number) for number in range(len(shares))]
        self.orders = []
        for number, (groups, share) in enumerate(zip(self.members, shares.tolist(), strict=True)):
            window = max(1, round(window_groups * share))
            self.orders.append(SampleOrder(self.group_rows[groups], window, sample_seed(seed, number, 0, "source")))
        self.windows = max(order.windows for order in self.orders)
        # Share of each source among itself and those after it, and where its line starts, in units.
        left = np.cumsum(shares[::-1])[::-1]
        self.slopes = [min(UNIT - 1, max(1, round(UNIT * share))) for share in (shares / left)[:-1].tolist()]
        self.starts = [sample_seed(seed, number, 0, "mix") % UNIT for number in range(len(self.slopes))]

    def taken(self, position: int) -> list[int]:
        """Returns how many of the positions before ``position`` each source has."""
        counts, left = [], int(position)
        for slope, start in zip(self.slopes, self.starts, strict=True):
            counts.append((left * slope + start) // UNIT)
            left -= counts[-1]
        return [*counts, left]

    def sources_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each position, and its position in that source's stream; both int64 (n,)."""
        source = np.full(len(positions), len(self.slopes), np.int64)
        inner = np.asarray(positions, np.int64).copy()
        for number, (slope, start) in enumerate(zip(self.slopes, self.starts, strict=True)):
            open_M = np.flatnonzero(source == len(self.slopes))
            left = inner[open_M]
            before = (left * slope + start) // UNIT
            here = ((left + 1) * slope + start) // UNIT > before
            source[open_M[here]] = number
            inner[open_M] = np.where(here, before, left - before)
        return source, inner

    def row_ids(self, positions: np.ndarray) -> np.ndarray:
        """Returns the row at each stream position, int64 (n,)."""
        out = np.empty(len(positions), np.int64)
        for number, at, inner in self._by_source(positions):
            out[at] = self._to_global_rows(number, self.orders[number].row_ids(inner))
        return out

    def window_fractions(self, positions: np.ndarray) -> np.ndarray:
        """As `SampleOrder.window_fractions`, within the window of the position's source."""
        out = np.empty(len(positions))
        for number, at, inner in self._by_source(positions):
            out[at] = self.orders[number].window_fractions(inner)
        return out

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the row group of each row."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def other_rows(self, position: int) -> np.ndarray:
        """Returns the rows of the position's window in its source after it, then those before it."""
        ((number, _, inner),) = self._by_source(np.array([position]))
        return self._to_global_rows(number, self.orders[number].other_rows(int(inner[0])))

    def windows_around(self, positions: np.ndarray, share: Share = WHOLE) -> tuple[list[int], list[int]]:
        """As `SampleOrder.windows_around`, for every source."""
        begin, end = self.taken(int(positions.min())), self.taken(int(positions.max()) + 1)
        to_load: list[int] = []
        to_keep: list[int] = []
        for number, (order, groups) in enumerate(zip(self.orders, self.members, strict=True)):
            around = np.array([begin[number], max(begin[number], end[number] - 1)])
            for found, target in zip(order.windows_around(around, share), (to_load, to_keep), strict=True):
                target += groups[found].tolist() if found else []
        return to_load, to_keep

    def _by_source(self, positions: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Returns each source of the positions, where its positions are among them, and these in its own stream."""
        source, inner = self.sources_of(positions)
        places = ((int(number), np.flatnonzero(source == number)) for number in np.unique(source))
        return [(number, at, inner[at]) for number, at in places]

    def _to_global_rows(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Converts rows of a source's order to rows of all."""
        order, groups = self.orders[number], self.members[number]
        inner = order.group_of(rows)
        return self.first[groups[inner]] + rows - order.first[inner]
