"""The state of rows over filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataprep.filters.exchange import NONE, VERDICT
from dataprep.filters.left_rows import (
    CODES,
    ORIGINALS,
    ApplyVerdicts,
    Verdicts,
    read_shard_state,
    write_state,
    write_verdicts,
)
from dataprep.filters.pair_shards import SHARD_ROWS, Groups
from dataprep.filters.steps import LocalTask, TaskResult, collect_parts, list_outputs

GROUPS = Groups((0, 2), (2, 3))  # shards 0 and 1, shard 2; three rows each


def make_state(folder: Path) -> LocalTask:
    folder.mkdir()
    task = LocalTask(0, {}, folder)
    none = np.zeros(0, VERDICT)
    write_state(task, 2, [(0, np.array([0, 1, 0], np.uint8), none), (1, np.zeros(3, np.uint8), none)])
    return LocalTask(0, list_outputs(map(str, folder.iterdir())), folder)


def make_verdicts(folder: Path, position: list[int], original: list[int]) -> Verdicts:
    folder.mkdir()
    counters = write_verdicts(LocalTask(0, {}, folder), GROUPS, np.array(position), np.array(original))
    files = list_outputs(map(str, folder.iterdir()))
    return Verdicts(collect_parts([TaskResult(0, files, counters)], 2))


def apply(tmp_path: Path, position: list[int], original: list[int]) -> LocalTask:
    state, verdicts = make_state(tmp_path / "state"), make_verdicts(tmp_path / "verdicts", position, original)
    out = tmp_path / "out"
    out.mkdir()
    counters = ApplyVerdicts(5, verdicts, GROUPS)(LocalTask(0, state.files, out))
    assert counters == {"dropped": sum(place < 2 * SHARD_ROWS for place in position)}
    return LocalTask(0, list_outputs(map(str, out.iterdir())), out)


def test_verdicts_reach_the_rows_of_their_group(tmp_path: Path) -> None:
    place = SHARD_ROWS + 1
    state = apply(tmp_path, [place, 2, 2 * SHARD_ROWS], [0, NONE, 1])
    codes_0, originals_0 = read_shard_state(state.files[CODES], state.files[ORIGINALS], 0)
    codes_1, originals_1 = read_shard_state(state.files[CODES], state.files[ORIGINALS], 1)
    assert codes_0.tolist() == [0, 1, 5] and codes_1.tolist() == [0, 5, 0]
    assert not len(originals_0)  # a row that repeats none
    assert originals_1.tolist() == [(place, 0)]


def test_a_row_cannot_be_dropped_twice(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="dropped before"):
        apply(tmp_path, [1], [NONE])
