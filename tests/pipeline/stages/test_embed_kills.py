"""Drivers and their Ray killed with SIGKILL while embedding: no caption is lost or doubled, the bytes are the same.

The driver is this file: ``python test_embed_kills.py FOLDER OUT`` embeds the pack shards of FOLDER.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.encoders import WORDS, save_encoder
from tests.helpers.stage_kills import count_done, run_and_kill, run_to_end, short_folder

ROWS = 60


def run_embed(folder: Path, out: Path) -> None:
    """Runs stage embed in a local Ray of one CPU."""
    from dataprep.text.config import EmbedConfig
    from pipeline.runtime.config import ClusterConfig
    from pipeline.runtime.ray_session import connect_ray
    from pipeline.runtime.shard_map import map_shards
    from pipeline.stages.embed import EmbedWorker
    from pipeline.store.artifact import Shard
    from tests.helpers.contexts import make_context

    connect_ray(ClusterConfig(cpus=1))
    packs = sorted(folder.glob("p*.parquet"))
    shards = [Shard(number, {"pack.parquet": str(path)}) for number, path in enumerate(packs)]
    arguments = {"config": EmbedConfig(codec="int8"), "encoder": str(folder / "encoder")}
    map_shards(make_context(out, "embed", retries=0), EmbedWorker, arguments, shards)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def write_packs(folder: Path, shards: int) -> None:
    from dataprep.io.parquet import write_table

    numbers = random.Random(0)
    for number in range(shards):
        captions = [" ".join(numbers.choices(WORDS[3:], k=numbers.randint(1, 40))) for _ in range(ROWS)]
        keys = [f"{number:05d}{row:04d}" for row in range(ROWS)]
        pack = pa.table({"key": keys, "captions": [[caption] for caption in captions]})
        write_table(pack, folder / f"p{number:05d}.parquet", "pack")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 20])
@pytest.mark.timeout(3600)
def test_embeddings_survive_kills(folder: Path, tmp_path: Path, kills: int) -> None:
    shards = 4 * kills + 2
    write_packs(folder, shards)
    save_encoder(folder / "encoder", "t5", num_layers=4, d_model=128, d_ff=512)
    whole = run_to_end(__file__, folder, tmp_path / "whole")
    numbers = random.Random(1)
    counts: list[int] = []
    for number in range(kills):
        # Leave at least one shard for each of the remaining kills.
        most = min(3, (shards - count_done(tmp_path / "out")) // (kills - number) - 1)
        run_and_kill(__file__, folder, tmp_path / "out", numbers.randint(0, max(0, most)), numbers.uniform(0, 0.3))
        counts.append(count_done(tmp_path / "out"))
        for path in (tmp_path / "out").rglob("*.parquet"):
            assert path.read_bytes() == whole[path.name]  # a file with its final name is complete
    print(f"{kills} kills, after {counts} of {shards} shards")
    assert count_done(tmp_path / "out") < shards
    assert run_to_end(__file__, folder, tmp_path / "out") == whole
    paths = sorted((tmp_path / "out").rglob("*.parquet"))
    keys = [key for path in paths for key in pq.read_table(path)["key"].to_pylist()]
    assert keys == [f"{number:05d}{row:04d}" for number in range(shards) for row in range(ROWS)]


if __name__ == "__main__":
    run_embed(Path(sys.argv[1]), Path(sys.argv[2]))
