"""Drivers killed with SIGKILL, their Ray with them, while they embed: no caption lost or doubled, the same bytes.

Run as a program, this file is such a driver: ``python test_kill_embed.py FOLDER OUT`` embeds the pack shards of FOLDER.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "dataprep")]
from encoder_fakes import WORDS, save_encoder  # noqa: E402

ROWS, TIMEOUT = 60, 900


def embed(folder: Path, out: Path) -> None:
    """What the embed stage does, in a Ray of one CPU."""
    from dataprep.embed import EmbedConfig
    from pipeline.cluster import connect
    from pipeline.config import ClusterConfig
    from pipeline.shards import map_shards
    from pipeline.steps.data import EmbedWorker
    from pipeline.store import Shard

    connect(ClusterConfig(cpus=1))
    packs = sorted(folder.glob("p*.parquet"))
    shards = [Shard(number, {"pack.parquet": str(path)}) for number, path in enumerate(packs)]
    arguments = {"config": EmbedConfig(codec="int8"), "encoder": str(folder / "encoder")}
    map_shards(EmbedWorker, arguments, shards, str(out), label="embed", retries=0)


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    scratch = str(folder / "tmp")  # what a killed Ray leaves lying about goes with the test's own folder
    env = os.environ | {"RAY_TMPDIR": scratch, "TMPDIR": scratch}
    words = [sys.executable, __file__, str(folder), str(out)]
    return subprocess.Popen(
        words, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(folder: Path, out: Path) -> dict[str, bytes]:
    """Runs to the end; every output file."""
    process = start(folder, out)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def done(out: Path) -> int:
    return len(list(out.glob(".shards/*.json")))


def kill(folder: Path, out: Path, shards: int, delay: float) -> None:
    """Runs until ``shards`` more are committed and ``delay`` seconds longer, then kills the driver and its Ray."""
    wanted, process = done(out) + shards, start(folder, out)
    deadline = time.monotonic() + TIMEOUT
    while done(out) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, process.communicate()
    tree = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in tree:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate(timeout=TIMEOUT)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kill-"))  # short: Ray's sockets live in it
    (made / "tmp").mkdir()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def write_packs(folder: Path, shards: int) -> None:
    from dataprep.schema import write_table

    numbers = random.Random(0)
    for number in range(shards):
        captions = [" ".join(numbers.choices(WORDS[3:], k=numbers.randint(1, 40))) for _ in range(ROWS)]
        keys = [f"{number:05d}{row:04d}" for row in range(ROWS)]
        write_table(pa.table({"key": keys, "caption": captions}), folder / f"p{number:05d}.parquet", "pack")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 20])
@pytest.mark.timeout(3600)
def test_embeddings_survive_kills(folder: Path, tmp_path: Path, kills: int) -> None:
    shards = 4 * kills + 2
    write_packs(folder, shards)
    save_encoder(folder / "encoder", "t5", num_layers=4, d_model=128, d_ff=512)
    whole = finish(folder, tmp_path / "whole")
    numbers, reached = random.Random(1), []
    for number in range(kills):
        # What is left goes to the other kills, of which each needs a shard at work.
        most = min(3, (shards - done(tmp_path / "out")) // (kills - number) - 1)
        kill(folder, tmp_path / "out", numbers.randint(0, max(0, most)), numbers.uniform(0, 0.3))
        reached.append(done(tmp_path / "out"))
        for path in (tmp_path / "out").glob("*.parquet"):
            assert path.read_bytes() == whole[path.name]  # what has its name is whole
    print(f"{kills} kills, after {reached} of {shards} shards")
    assert done(tmp_path / "out") < shards
    assert finish(folder, tmp_path / "out") == whole
    keys = [key for name in whole for key in pq.read_table(tmp_path / "out" / name)["key"].to_pylist()]
    assert keys == [f"{number:05d}{row:04d}" for number in range(shards) for row in range(ROWS)]


if __name__ == "__main__":
    embed(Path(sys.argv[1]), Path(sys.argv[2]))
