"""Shards in groups, and what a task sees of them."""

from __future__ import annotations

import numpy as np
import pytest

from dataprep.filters import pair_shards
from dataprep.filters.pair_shards import SHARD_ROWS, Groups, PairShard, group_shards, open_shards


def shards(*rows: int) -> list[PairShard]:
    return [PairShard(3 * number, count, f"a{number}", f"s{number}", f"d{number}") for number, count in enumerate(rows)]


def test_groups_hold_about_as_many_rows_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_shards, "GROUP_ROWS", 100)
    grouped = group_shards(shards(60, 40, 1, 500, 0, 99, 1, 1))
    assert [[shard.rows for shard in group] for group in grouped] == [[60, 40], [1], [500], [0, 99, 1], [1]]
    monkeypatch.setattr(pair_shards, "MAX_GROUPS", 2)
    assert len(group_shards(shards(*[60] * 100))) == 2
    assert group_shards(shards(5)) == [shards(5)]


def test_a_task_finds_its_shards_again() -> None:
    given = shards(60, 40)
    files = {name: path for shard in given for name, path in shard.list_files(["caption", "url"]).items()}
    assert list(open_shards(files)) == given
    files = {name: path for shard in given for name, path in shard.list_files(["caption"]).items()}
    assert list(open_shards(files)) == [PairShard(shard.id, shard.rows, shard.annotations) for shard in given]
    later = {
        name: path
        for shard in [PairShard(12, 1, "x"), PairShard(9, 1, "y")]
        for name, path in shard.list_files(["caption"]).items()
    }
    assert [shard.id for shard in open_shards(later)] == [9, 12]


def test_a_row_is_in_the_group_of_its_shard() -> None:
    groups = Groups((0, 4, 9), (3, 9, 11))
    position_N = np.array([0, 2, 4, 8, 9, 10]) * SHARD_ROWS + SHARD_ROWS - 1
    assert groups.find(position_N).tolist() == [0, 0, 1, 1, 2, 2]
