"""Randomness of training as pure functions: seeds, random numbers per sample, and the order of rows.

The rows form one endless stream. Position p belongs to epoch ``p // rows``. In each epoch, the row groups of all shards
are shuffled and split into windows of equally many groups, and the rows of a window are shuffled together. There is no
state between calls, so seeking is free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.loader.counter_random import counter_normal, counter_starts, counter_uniform


def sample_seed(seed: int, step: int, index: int, stream: str = "") -> int:
    """Hashes its arguments into a 63-bit seed; ``stream`` separates uses within a sample."""
    text = f"{seed}/{step}/{index}/{stream}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class SampleRandom:
    """Random numbers per sample of a batch, from (seed, step, the sample's stream position) and a stream name.

    They are made on the device of ``index_B``, int64 (B,), the ``indices`` once more; without it on the CPU. A CPU has
    other numbers than GPUs, which have the same as each other.
    """

    def __init__(
        self, seed: int, step: int, indices: Sequence[int] | np.ndarray, index_B: Tensor | None = None
    ) -> None:
        self.seed, self.step, self.indices = seed, step, np.asarray(indices).tolist()
        self.index_B = torch.tensor(self.indices, dtype=torch.int64) if index_B is None else index_B

    @classmethod
    def of_batch(cls, seed: int, step: int, batch: Mapping[str, Any]) -> SampleRandom:
        """Returns the random numbers of a batch, on the device to which `train.loader.feed` sent it."""
        return cls(seed, step, batch["index"], batch["index_B"])

    @property
    def device(self) -> torch.device:
        """The device on which numbers are made."""
        return self.index_B.device

    def seeds(self, stream: str) -> list[int]:
        """Returns one seed per sample."""
        return [sample_seed(self.seed, self.step, index, stream) for index in self.indices]

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Returns standard normal float32 (B, *shape)."""
        if self.device.type == "cpu":
            return self._generate(Tensor.normal_, stream, shape)
        return counter_normal(self._key(stream), self._start_B, shape)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Returns uniform float32 in [0, 1), (B, *shape)."""
        if self.device.type == "cpu":
            return self._generate(Tensor.uniform_, stream, shape)
        return counter_uniform(self._key(stream), self._start_B, shape)

    def _key(self, stream: str) -> int:
        return sample_seed(self.seed, self.step, -1, stream)  # no sample's own

    @cached_property
    def _start_B(self) -> Tensor:
        return counter_starts(self.index_B)

    def _generate(self, fill: Callable[..., Tensor], stream: str, shape: tuple[int, ...]) -> Tensor:
        """Fills in place row by row, by torch's generator of CPUs: faster there than `train.loader.counter_random`."""
        out = torch.empty(len(self.indices), *shape)
        generator = torch.Generator()
        for row, seed in zip(out.unbind(), self.seeds(stream), strict=True):
            fill(row, generator=generator.manual_seed(seed))
        return out


PREFETCH_AT = 0.5  # fraction of a window after which the next one is read, and the previous one evicted


@dataclass(frozen=True)
class Window:
    """The ``index``-th window of an epoch."""

    epoch: int
    index: int


class Share(NamedTuple):
    """Part of a window's rows, by row group: fractions ``start`` to ``stop`` of [0, 1]."""

    start: float
    stop: float


WHOLE = Share(0.0, 1.0)


class EpochPlan(NamedTuple):
    """Row groups of an epoch in shuffled order, and the offsets at which windows start, then the end."""

    groups: np.ndarray  # int64 (groups,)
    starts: np.ndarray  # int64 (windows + 1,)


class SampleOrder:
    """Maps stream positions to rows, for row groups of ``group_rows`` rows and windows of ``window_groups`` groups.

    Rows are numbered through the groups in their given order. If all groups fit in one window, an epoch is a uniform
    permutation of all rows. Caches plans and permutations of recent epochs and windows.
    """

    CACHED = 4

    def __init__(self, group_rows: Sequence[int] | np.ndarray, window_groups: int, seed: int) -> None:
        self.group_rows = np.asarray(group_rows, dtype=np.int64)
        self.first = np.concatenate(
            [[0], np.cumsum(self.group_rows)]
        )  # first row of each group; then the number of rows
        self.rows, self.seed = int(self.first[-1]), seed
        self.window_groups = max(1, min(window_groups, len(self.group_rows)))
        self.windows = -(-len(self.group_rows) // self.window_groups)
        self._plans: dict[int, EpochPlan] = {}
        self._shuffled: dict[Window, np.ndarray] = {}

    def row_ids(self, positions: np.ndarray) -> np.ndarray:
        """Returns the row at each stream position, int64 (n,)."""
        out = np.empty(len(positions), dtype=np.int64)
        for window, chosen in self._by_window(positions):
            start = self.plan_epoch(window.epoch).starts[window.index]
            out[chosen] = self._shuffle_rows(window)[positions[chosen] % self.rows - start]
        return out

    def window_fractions(self, positions: np.ndarray) -> np.ndarray:
        """Returns where each position's row lies in its window, ordered by row group: fractions of [0, 1], (n,)."""
        out = np.empty(len(positions))
        for window, chosen in self._by_window(positions):
            groups = self.window_row_groups(window)
            ends = np.cumsum(self.group_rows[groups])
            rows = self.row_ids(positions[chosen])
            at = np.searchsorted(groups, self.group_of(rows))
            out[chosen] = (ends[at] - self.first[groups[at] + 1] + rows) / ends[-1]
        return out

    def _by_window(self, positions: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        """Yields the windows of the positions, and the indices of the positions in each."""
        epochs, offsets = np.divmod(positions, self.rows)
        for epoch in np.unique(epochs):
            at = np.flatnonzero(epochs == epoch)
            windows = np.searchsorted(self.plan_epoch(int(epoch)).starts, offsets[at], side="right") - 1
            for index in np.unique(windows):
                yield Window(int(epoch), int(index)), at[windows == index]

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the row group of each row."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def other_rows(self, position: int) -> np.ndarray:
        """Returns the rows of the position's window after it, then those before it."""
        window, _ = self.window_at(position)
        at = position % self.rows - int(self.plan_epoch(window.epoch).starts[window.index])
        rows = self._shuffle_rows(window)
        return np.concatenate([rows[at + 1 :], rows[:at]])

    def window_at(self, position: int) -> tuple[Window, float]:
        """Returns the window of a stream position, and the position's fraction of it, in [0, 1)."""
        epoch, offset = divmod(int(position), self.rows)
        starts = self.plan_epoch(epoch).starts
        index = int(np.searchsorted(starts, offset, side="right")) - 1
        return Window(epoch, index), float(offset - starts[index]) / float(starts[index + 1] - starts[index])

    def shift_window(self, window: Window, by: int) -> Window:
        """Returns the window ``by`` windows later (earlier if negative)."""
        epoch, index = divmod(window.epoch * self.windows + window.index + by, self.windows)
        return Window(epoch, index)

    def window_row_groups(self, window: Window, share: Share = WHOLE) -> np.ndarray:
        """Returns the row groups of a window with a ``share`` of its rows, ascending; none before the first epoch."""
        if window.epoch < 0:
            return np.empty(0, dtype=np.int64)
        start = window.index * self.window_groups
        groups = np.sort(self.plan_epoch(window.epoch).groups[start : start + self.window_groups])
        ends = np.cumsum(self.group_rows[groups])
        return groups[(ends > share.start * ends[-1]) & (ends - self.group_rows[groups] < share.stop * ends[-1])]

    def windows_around(self, positions: np.ndarray, share: Share = WHOLE) -> tuple[list[int], list[int]]:
        """Returns (to_load, to_keep): row groups to read for a batch at ``positions``, and others not to evict.

        To load are those of the batch's window and, past its midpoint, of the next; of each only the ``share``.
        """
        first, _ = self.window_at(positions.min())
        last, done = self.window_at(positions.max())
        before, after = self.shift_window(first, -1), self.shift_window(last, 1)
        to_load = [*self.window_row_groups(first, share).tolist(), *self.window_row_groups(last, share).tolist()]
        next_groups = self.window_row_groups(after, share).tolist()  # to keep: a thread ahead may have read them
        if done >= PREFETCH_AT:
            return to_load + next_groups, []
        return to_load, [*next_groups, *self.window_row_groups(before, share).tolist()]

    def plan_epoch(self, epoch: int) -> EpochPlan:
        """Returns the order of the row groups in ``epoch``."""
        plan = self._plans.get(epoch)
        if plan is None:
            groups = np.random.default_rng(sample_seed(self.seed, epoch, 0, "groups")).permutation(len(self.group_rows))
            first = np.arange(0, len(groups), self.window_groups)
            sizes = np.add.reduceat(self.group_rows[groups], first)
            plan = EpochPlan(groups, np.concatenate([[0], np.cumsum(sizes)]))
            # A new dict each time: other threads may be reading it.
            self._plans = dict(list(self._plans.items())[1 - self.CACHED :]) | {epoch: plan}
        return plan

    def _shuffle_rows(self, window: Window) -> np.ndarray:
        shuffled = self._shuffled.get(window)
        if shuffled is None:
            groups = self.window_row_groups(window)
            rows = np.concatenate([np.arange(self.first[group], self.first[group + 1]) for group in groups])
            rng = np.random.default_rng(sample_seed(self.seed, window.epoch, window.index, "order"))
            shuffled = rows[rng.permutation(len(rows))]
            self._shuffled = dict(list(self._shuffled.items())[1 - self.CACHED :]) | {window: shuffled}
        return shuffled
