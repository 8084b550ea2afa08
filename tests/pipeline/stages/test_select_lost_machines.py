"""Select on two hosts that share only a bucket, one of them killed while rows are exchanged.

The driver is this module: ``python -m tests.pipeline.stages.test_select_lost_machines URL ADDRESS`` selects into a run
in the bucket.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.hosts import Bucket, find_obstacle
from tests.helpers.paths import ROOT
from tests.helpers.selection import make_repetitive_rows, write_shards
from tests.pipeline.execution.test_executor_lost_machines import Cluster

REASON = find_obstacle()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(900),
]
ROWS, KINDS = 1800, ("annotations", "scores", "download")
OPTIONS = {"min_side": 0, "top_similarity": 0.8, "max_caption_repeats": 2, "duplicate_pairs": True}


def run_select(url: str, address: str) -> None:
    """Selects over shards that it puts into the bucket, in small groups and parts."""
    from dataprep.filters import exchange, pair_shards
    from dataprep.filters.config import SelectConfig
    from dataprep.filters.pair_shards import PairShard
    from dataprep.filters.select import select_pairs
    from dataprep.io import storage
    from pipeline.runtime.config import ClusterConfig
    from pipeline.runtime.ray_session import connect_ray
    from pipeline.stages.select import ClusterRunner
    from tests.helpers.contexts import make_context

    pair_shards.GROUP_ROWS, exchange.PART_BYTES = 200, 8000
    connect_ray(ClusterConfig(address=address))
    shards = []
    with tempfile.TemporaryDirectory() as folder:
        for shard in write_shards(Path(folder), *make_repetitive_rows(ROWS)):
            paths = [storage.join(url, "inputs", f"{kind}-{shard.id}.parquet") for kind in KINDS]
            for kind, path in zip(KINDS, paths, strict=True):
                storage.publish(Path(folder) / f"{kind}-{shard.id}.parquet", path)
            shards.append(PairShard(shard.id, shard.rows, *paths))
    runner = ClusterRunner(make_context(storage.join(url, "run"), "select", address=address))
    tables = select_pairs(shards, SelectConfig(**OPTIONS), runner).tables.values()
    runner.end()
    print(json.dumps({path.rpartition("/")[2]: storage.sha256_file(path)[0] for path in tables}))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("hosts"), dashboard=False)
    try:
        made.start()
        yield made
    finally:
        made.close()


def select_locally(folder: Path) -> dict[str, str]:
    """Returns the hashes of the tables that this process makes."""
    from dataprep.filters.config import SelectConfig
    from dataprep.filters.select import select_pairs
    from dataprep.filters.steps import LocalRunner

    shards = write_shards(folder, *make_repetitive_rows(ROWS))
    tables = select_pairs(shards, SelectConfig(**OPTIONS), LocalRunner(folder)).tables.values()
    return {Path(path).name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in tables}


@pytest.mark.parametrize("step", ["exact_duplicate-digests", "near_duplicate-links", "near_duplicate-members"])
def test_a_host_killed_in_the_exchange_changes_nothing(cluster: Cluster, step: str, tmp_path: Path) -> None:
    # With -m the repository's root is on sys.path, where the `tests` package and its helpers are found.
    words = [sys.executable, "-m", "tests.pipeline.stages.test_select_lost_machines"]
    words += [f"s3://{Bucket.NAME}/{step}", f"{cluster.head.ip}:6379"]
    log = tmp_path / "driver.log"  # apart from what the driver prints: Ray reports the lost host there at any time
    with log.open("w") as errors:
        driver = cluster.head.popen(words, cwd=str(ROOT), env=cluster.env, stdout=subprocess.PIPE, stderr=errors)
    folder, deadline = f"{step}/run/stages/select/", time.monotonic() + 500
    while not any(f"exchange/{step}/" in name for name in cluster.bucket.list_names(folder)):
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    victim = cluster.workers[0]
    victim.kill()
    assert driver.poll() is None
    print(f"{victim.name} killed during {step}")
    victim.start()
    cluster.start_worker(victim)
    printed, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, log.read_text()[-3000:]
    found = json.loads(printed.splitlines()[-1])  # before it stand the notices on the lost host
    assert found == select_locally(tmp_path) and len(found) == ROWS // 90
    assert not any("exchange" in name for name in cluster.bucket.list_names(folder))


if __name__ == "__main__":
    run_select(sys.argv[1], sys.argv[2])
