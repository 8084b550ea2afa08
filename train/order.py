"""What is random in training, as pure functions: seeds, the numbers of a sample, and which row stands where.

The rows form one endless stream. Position p belongs to epoch ``p // rows``. In each epoch the row groups of all shards
are shuffled, cut into windows of so many groups, and the rows of a window are shuffled among themselves. Nothing is
remembered between calls, so a seek costs what any other look-up costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def sample_seed(seed: int, step: int, index: int, stream: str = "") -> int:
    """A 63-bit seed that depends on nothing but its arguments; ``stream`` separates uses within a sample."""
    text = f"{seed}/{step}/{index}/{stream}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class SampleRandom:
    """Random numbers of each sample of a batch, from (seed, step, the sample's position in the stream) and a name."""

    def __init__(self, seed: int, step: int, indices: Sequence[int]) -> None:
        self.seed, self.step, self.indices = seed, step, [int(index) for index in indices]

    def seeds(self, stream: str) -> list[int]:
        """One seed a sample."""
        return [sample_seed(self.seed, self.step, index, stream) for index in self.indices]

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal float32 (B, *shape) on the CPU."""
        return self._draw(torch.randn, stream, shape)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Uniform float32 in [0, 1), (B, *shape), on the CPU."""
        return self._draw(torch.rand, stream, shape)

    def _draw(self, function: Any, stream: str, shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(len(self.indices), *shape)
        generator = torch.Generator()
        for row, seed in zip(out, self.seeds(stream), strict=True):
            generator.manual_seed(seed)
            row.copy_(function(shape, generator=generator))
        return out


AHEAD = 0.5  # share of a window after which the next one is read, and the one before it let go


@dataclass(frozen=True)
class Window:
    """The ``index``-th window of an epoch."""

    epoch: int
    index: int


class Share(NamedTuple):
    """A part of a window's rows, by row group: from ``start`` to ``stop`` of 0 to 1."""

    start: float
    stop: float


WHOLE = Share(0.0, 1.0)


class Plan(NamedTuple):
    """One epoch: its row groups in shuffled order, and the offset at which each window starts, the end included."""

    groups: np.ndarray  # int64 (groups,)
    starts: np.ndarray  # int64 (windows + 1,)


class Order:
    """The row at each stream position, for row groups of ``group_rows`` rows of which a window mixes ``window_groups``.

    A row is numbered through the groups in their given order. Where all groups fit into one window, an epoch is a
    uniform permutation of all rows. Plans and permutations of recent epochs and windows are kept, as a speed-up.
    """

    KEPT = 4

    def __init__(self, group_rows: Sequence[int] | np.ndarray, window_groups: int, seed: int) -> None:
        self.group_rows = np.asarray(group_rows, dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.group_rows)])  # of each group; then the number of rows
        self.rows, self.seed = int(self.first[-1]), seed
        self.window_groups = max(1, min(window_groups, len(self.group_rows)))
        self.windows = -(-len(self.group_rows) // self.window_groups)
        self._plans: dict[int, Plan] = {}
        self._shuffled: dict[Window, np.ndarray] = {}

    def row_ids(self, positions: np.ndarray) -> np.ndarray:
        """The row at each stream position: int64, of the same shape (n,)."""
        out = np.empty(len(positions), dtype=np.int64)
        for window, chosen in self._by_window(positions):
            start = self.plan(window.epoch).starts[window.index]
            out[chosen] = self._rows_of(window)[positions[chosen] % self.rows - start]
        return out

    def depths(self, positions: np.ndarray) -> np.ndarray:
        """Where the row at each position stands among those of its window, row group by row group: 0 to 1, (n,)."""
        out = np.empty(len(positions))
        for window, chosen in self._by_window(positions):
            groups = self.groups(window)
            ends = np.cumsum(self.group_rows[groups])
            rows = self.row_ids(positions[chosen])
            at = np.searchsorted(groups, self.group_of(rows))
            out[chosen] = (ends[at] - self.first[groups[at] + 1] + rows) / ends[-1]
        return out

    def _by_window(self, positions: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        """The windows of positions, and which positions are of each."""
        epochs, offsets = np.divmod(positions, self.rows)
        for epoch in np.unique(epochs):
            at = np.flatnonzero(epochs == epoch)
            windows = np.searchsorted(self.plan(int(epoch)).starts, offsets[at], side="right") - 1
            for index in np.unique(windows):
                yield Window(int(epoch), int(index)), at[windows == index]

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        """The row group of each row."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def others(self, position: int) -> np.ndarray:
        """The rows of the position's window that come after it, then those before it."""
        window, _ = self.window(position)
        at = position % self.rows - int(self.plan(window.epoch).starts[window.index])
        rows = self._rows_of(window)
        return np.concatenate([rows[at + 1 :], rows[:at]])

    def window(self, position: int) -> tuple[Window, float]:
        """The window of a stream position, and how far into it the position is, from 0 to 1."""
        epoch, offset = divmod(int(position), self.rows)
        starts = self.plan(epoch).starts
        index = int(np.searchsorted(starts, offset, side="right")) - 1
        return Window(epoch, index), float(offset - starts[index]) / float(starts[index + 1] - starts[index])

    def neighbour(self, window: Window, by: int) -> Window:
        """The window that comes ``by`` windows later (earlier if negative)."""
        epoch, index = divmod(window.epoch * self.windows + window.index + by, self.windows)
        return Window(epoch, index)

    def groups(self, window: Window, share: Share = WHOLE) -> np.ndarray:
        """The row groups of a window, ascending, or those with a ``share`` of its rows; none before the first epoch."""
        if window.epoch < 0:
            return np.empty(0, dtype=np.int64)
        start = window.index * self.window_groups
        groups = np.sort(self.plan(window.epoch).groups[start : start + self.window_groups])
        ends = np.cumsum(self.group_rows[groups])
        return groups[(ends > share.start * ends[-1]) & (ends - self.group_rows[groups] < share.stop * ends[-1])]

    def around(self, positions: np.ndarray, share: Share = WHOLE) -> tuple[list[int], list[int]]:
        """Row groups that a batch at ``positions`` wants in memory, first those that it waits for, and those to leave
        there if they are: its window's, and from the middle of that on the next one's; of each the ``share``."""
        first, _ = self.window(positions.min())
        last, done = self.window(positions.max())
        before, after = self.neighbour(first, -1), self.neighbour(last, 1)
        wanted = [*self.groups(first, share).tolist(), *self.groups(last, share).tolist()]
        spare = self.groups(after, share).tolist()  # not to be dropped if it is there: a thread ahead asked for it
        if done >= AHEAD:
            return wanted + spare, []
        return wanted, [*spare, *self.groups(before, share).tolist()]

    def plan(self, epoch: int) -> Plan:
        """The order of the row groups in ``epoch``."""
        plan = self._plans.get(epoch)
        if plan is None:
            groups = np.random.default_rng(sample_seed(self.seed, epoch, 0, "groups")).permutation(len(self.group_rows))
            first = np.arange(0, len(groups), self.window_groups)
            sizes = np.add.reduceat(self.group_rows[groups], first)
            plan = Plan(groups, np.concatenate([[0], np.cumsum(sizes)]))
            # A new dict each time: several threads may look while one adds.
            self._plans = dict(list(self._plans.items())[1 - self.KEPT :]) | {epoch: plan}
        return plan

    def _rows_of(self, window: Window) -> np.ndarray:
        shuffled = self._shuffled.get(window)
        if shuffled is None:
            groups = self.groups(window)
            rows = np.concatenate([np.arange(self.first[group], self.first[group + 1]) for group in groups])
            rng = np.random.default_rng(sample_seed(self.seed, window.epoch, window.index, "order"))
            shuffled = rows[rng.permutation(len(rows))]
            self._shuffled = dict(list(self._shuffled.items())[1 - self.KEPT :]) | {window: shuffled}
        return shuffled
