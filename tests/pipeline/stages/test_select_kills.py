"""Drivers and their Ray killed with SIGKILL while selecting on the cluster: the tables are those of an undisturbed run.

The driver is this file: ``python test_select_kills.py FOLDER OUT`` selects over the shards of FOLDER.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.selection import make_repetitive_rows, write_shards
from tests.helpers.stage_kills import count_done, run_and_kill, run_to_end, short_folder


def run_select(folder: Path, out: Path) -> None:
    """Selects on a local Ray of two CPUs, in small groups and parts."""
    from dataprep.filters import exchange, pair_shards
    from dataprep.filters.config import SelectConfig
    from dataprep.filters.pair_shards import PairShard
    from dataprep.filters.select import select_pairs
    from pipeline.runtime.config import ClusterConfig
    from pipeline.runtime.ray_session import connect_ray
    from pipeline.stages.select import ClusterRunner
    from tests.helpers.contexts import make_context

    pair_shards.GROUP_ROWS, exchange.PART_BYTES = 200, 8000
    connect_ray(ClusterConfig(cpus=2))
    shards = [
        PairShard(
            number, 90, *(str(folder / f"{kind}-{number}.parquet") for kind in ("annotations", "scores", "download"))
        )
        for number in range(20)
    ]
    runner = ClusterRunner(make_context(out, "select", retries=0))
    runner.begin()
    config = SelectConfig(min_side=0, top_similarity=0.8, max_caption_repeats=2, duplicate_pairs=True)
    select_pairs(shards, config, runner)
    runner.end()


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_selection_survives_kills(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, *make_repetitive_rows(1800))
    whole = run_to_end(__file__, folder, tmp_path / "whole")
    assert len(whole) == 20
    numbers, counts = random.Random(0), list[int]()
    for _ in range(8):
        run_and_kill(__file__, folder, tmp_path / "out", numbers.randint(1, 12), numbers.uniform(0, 0.3))
        counts.append(count_done(tmp_path / "out"))
        for path in (tmp_path / "out").rglob("*.parquet"):
            assert path.read_bytes() == whole[path.name]  # a file with its final name is complete
    print(f"8 kills, after {counts} tasks")
    assert run_to_end(__file__, folder, tmp_path / "out") == whole


if __name__ == "__main__":
    run_select(Path(sys.argv[1]), Path(sys.argv[2]))
