"""Order of samples: each once per epoch, well mixed, the same for any ranks, accumulation and workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.loader.loader import Batch, Stream
from train.loader.sampler import SampleOrder, SampleRandom, Window, sample_seed

GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


class Rows(Stream):
    """A stream over an order; batches hold row numbers."""

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": rows.tolist()}


def stream(groups: list[int], window: int, seed: int, batch: int) -> Rows:
    order = SampleOrder(groups, window, seed)
    return Rows(order.rows, seed, batch, order)


def whole_batches(data: Rows, steps: int, world: int, accumulation: int, workers: int) -> list[list[int]]:
    """Returns the global batch of each step, loaded by several threads as in the loop."""

    def one(at: tuple[int, int, int]) -> list[int]:
        step, micro, rank = at
        return data.batch(step, rank, world, micro, accumulation)["key"]

    places = [(step, micro, rank) for step in range(steps) for micro in range(accumulation) for rank in range(world)]
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(one, places))
    count = world * accumulation
    return [[row for part in parts[step * count : (step + 1) * count] for row in part] for step in range(steps)]


@settings(max_examples=60, deadline=None)
@given(
    groups=GROUPS,
    window=st.integers(1, 5),
    seed=st.integers(0, 9),
    world=st.integers(1, 8),
    accumulation=st.integers(1, 3),
    size=st.integers(1, 3),
    workers=st.integers(1, 4),
)
def test_each_sample_once_per_epoch_in_one_global_batch(
    groups: list[int], window: int, seed: int, world: int, accumulation: int, size: int, workers: int
) -> None:
    batch = world * accumulation * size
    rows = sum(groups)
    steps = -(-3 * rows // batch)
    parted = whole_batches(stream(groups, window, seed, batch), steps, world, accumulation, workers)
    alone = [stream(groups, window, seed, batch).batch(step)["key"] for step in range(steps)]
    assert [sorted(step) for step in parted] == [sorted(step) for step in alone]
    flat = [row for step in alone for row in step]
    for epoch in range(3):
        assert sorted(flat[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(groups=GROUPS, window=st.integers(1, 5), seed=st.integers(0, 9), position=st.integers(0, 10**12))
def test_seeking_agrees_with_the_window(groups: list[int], window: int, seed: int, position: int) -> None:
    order = SampleOrder(groups, window, seed)
    here, share = order.window_at(position)
    (row,) = order.row_ids(np.array([position]))
    assert int(order.group_of(row)) in order.window_row_groups(here)
    assert 0 <= share < 1
    assert order.shift_window(order.shift_window(here, 1), -1) == here
    other_rows = order.other_rows(position).tolist()
    assert row not in other_rows
    assert len(other_rows) + 1 == sum(order.group_rows[group] for group in order.window_row_groups(here))


@pytest.mark.parametrize("world", [2, 8])
def test_each_rank_reads_its_share_of_the_row_groups(world: int) -> None:
    """Its share of the 20 groups of a window, plus a margin for random batches and split groups."""
    data = stream([128] * 200, 20, 3, 1024)
    read: list[set[int]] = [set() for _ in range(world)]
    prefetched: list[set[int]] = [set() for _ in range(world)]
    for step in range(25_600 // 1024):
        for rank in range(world):
            positions = data.positions(step, rank, world)
            read[rank] |= {*data.order.group_of(data.order.row_ids(positions)).tolist()}
            data.batch(step, rank, world)
            wanted, _ = data.order.windows_around(np.array([step * 1024, step * 1024 + 1023]), data.share)
            prefetched[rank] |= set(wanted)
    assert set().union(*read) == set(range(200))
    for mine, ahead in zip(read, prefetched, strict=True):
        assert len(ahead) / 200 < 1 / world + 2 / 1024**0.5 + 2.1 / 20
        assert len(mine - ahead) <= 0.02 * 200  # read on demand


def test_one_window_is_a_uniform_permutation_of_all_rows() -> None:
    rows = 40
    order = SampleOrder([7, 13, 20], 3, 5)
    expected = np.random.default_rng(sample_seed(5, 2, 0, "order")).permutation(rows)
    assert np.array_equal(order.row_ids(np.arange(2 * rows, 3 * rows)), expected)


def test_windows_mix_groups_from_anywhere() -> None:
    order = SampleOrder([10] * 100, 10, 0)
    first = order.row_ids(np.arange(100)) // 10
    assert len(set(first[:20].tolist())) > 5  # a batch is of many groups
    spans = [np.ptp(order.window_row_groups(Window(0, index))) for index in range(order.windows)]
    assert min(spans) > 50  # and a window of groups far apart
    assert order.window_row_groups(Window(-1, 0)).size == 0
    assert not np.array_equal(order.window_row_groups(Window(0, 0)), order.window_row_groups(Window(1, 0)))


def test_rows_are_uniformly_distributed() -> None:
    places = np.array([[SampleOrder([5, 5, 5, 5], 2, seed).row_ids(np.arange(20)).argmin()] for seed in range(2000)])
    counts = np.bincount(places.ravel(), minlength=20)
    assert counts.min() > 60 and counts.max() < 145  # 100 expected, sd 10


def test_random_numbers_depend_on_the_sample_alone() -> None:
    whole = SampleRandom(1, 7, [4, 5, 6]).normal("noise", 2, 3)
    assert np.array_equal(SampleRandom(1, 7, [6]).normal("noise", 2, 3)[0], whole[2])
    for other in (SampleRandom(1, 8, [6]).normal("noise", 2, 3), SampleRandom(1, 7, [6]).normal("other", 2, 3)):
        assert not np.array_equal(other[0], whole[2])
    uniform = SampleRandom(1, 7, range(4000)).uniform("u")
    assert uniform.shape == (4000,) and 0.48 < float(uniform.mean()) < 0.52
    assert len({sample_seed(*key) for key in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 11, 0), (0, 1, 10)]}) == 5


@pytest.mark.parametrize("bad", [0, -3])
def test_a_batch_has_samples(bad: int) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        stream([3], 1, 0, bad)
