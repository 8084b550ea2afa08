"""What distribution costs: a second node on the same cores, and a resume with nothing to do of 10,000 shards.

``python -m benchmarks.cluster RUN``, with a finished run (such as runs/demo) whose listing, download, pack, encoder and
CLIP are worked on again, elsewhere. Three clusters on one machine: a node of one CPU, one of two CPUs, two of one CPU
each, by turns. Rates are of the steady state: rows of the shards that end after every worker's first, over the time
they took. Ratios are of one turn, and the median of all turns is kept.

The resume is of a run folder as a run of 10,000 shards leaves it, on a local disk and on S3 (moto's server, a process
of its own on the same cores): once finished, so that the command finds all stages done, and once with a download whose
driver died before its manifest.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.result import claim, write
from dataprep import storage
from dataprep.redact import FORGOTTEN_FILE, ForgottenList
from pipeline.cluster import connect
from pipeline.config import ClusterConfig, RunConfig, load_config
from pipeline.executor import PUBLISHED, plan
from pipeline.shards import map_shards
from pipeline.steps.data import DownloadWorker, EmbedWorker, ScoreWorker
from pipeline.steps.models import clip_spec, encoder_spec
from pipeline.store import Index, Manifest, Marker, Output, Run, Shard, read_markers, write_marker

SHAPES = {"one node of 1 CPU": (1,), "one node of 2 CPUs": (2,), "two nodes of 1 CPU": (1, 1)}
REPEAT, ROUNDS = 3, 3  # times that each shard of the run is worked on; turns of each cluster
SHARDS, SHARDED = 10_000, ("download", "annotate", "score", "select", "pack", "embed")


class Stamped:
    """Another worker, with the time at which each shard ended among its counters."""

    def __init__(self, worker: type, arguments: dict[str, Any]) -> None:
        self.worker = worker(**arguments)

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """As the other worker."""
        return self.worker(shard, out) | {"ended_ms": int(time.time() * 1000)}


@contextmanager
def cluster(cpus: tuple[int, ...]) -> Iterator[None]:
    """Nodes of so many CPUs, raylets of their own, and this process connected to them."""
    store = {"object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], **store})
    try:
        for count in cpus[1:]:
            made.add_node(num_cpus=count, **store)
        connect(ClusterConfig(address=made.address))
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def passes(run: Run) -> dict[str, tuple[type, dict[str, Any], list[Shard], str]]:
    """stage -> worker, arguments, shards, and the counter that is its unit of work."""
    found, config = run.artifacts(), RunConfig.model_validate(run.record()["config"], strict=False)
    download = {
        "config": config.download,
        "scenes": config.listing.scenes,
        "seed": config.seed,
        "forgotten": ForgottenList(path=run.path(FORGOTTEN_FILE)),
    }
    score = {"clip": clip_spec(found["clip"]), "max_pixels": 1 << 24, "heads": {}, "embeddings": False}
    embed = {"config": config.embed, "encoder": encoder_spec(found["encoder"])}

    def shards(stage: str) -> list[Shard]:
        pieces = [{f"{stage}.{name}": path for name, path in shard.files.items()} for shard in found[stage].shards]
        return [Shard(number, files) for number, files in enumerate(pieces * REPEAT)]

    return {
        "download": (DownloadWorker, download, shards("listing"), "rows"),
        "score": (ScoreWorker, score, shards("download"), "rows"),
        "embed": (EmbedWorker, embed, shards("pack"), "captions"),
    }


def rate(markers: list[Marker], workers: int, unit: str) -> float:
    """Units a second, once each worker has ended its first shard."""
    ended = sorted(markers, key=lambda marker: marker.counters["ended_ms"])
    seconds = (ended[-1].counters["ended_ms"] - ended[workers - 1].counters["ended_ms"]) / 1000
    return sum(marker.counters[unit] for marker in ended[workers:]) / seconds


def turn(run: Run, name: str) -> dict[str, float]:
    """stage -> units a second, on the cluster of that name."""
    cpus, rates = SHAPES[name], {}
    with cluster(cpus), tempfile.TemporaryDirectory() as folder:
        for stage, (worker, arguments, shards, unit) in passes(run).items():
            given = {"worker": worker, "arguments": arguments}
            done = map_shards(Stamped, given, shards, storage.join(folder, stage), label=stage, retries=0)
            rates[stage] = rate(done.shards, sum(cpus), unit)
            print(f"{name}: {stage} {rates[stage]:.0f} {unit}/s", flush=True)
    return rates


def throughput(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and claims of the three clusters."""
    turns = [{name: turn(run, name) for name in SHAPES} for _ in range(ROUNDS)]
    rows, claims = [], []
    single, wide, two = SHAPES
    for stage in turns[0][single]:
        row: dict[str, Any] = {"stage": stage}
        for name in SHAPES:
            row[f"{name}, rows/s"] = [round(found[name][stage], 1) for found in turns]
        ratios = [found[two][stage] / found[wide][stage] for found in turns]
        sums = [found[two][stage] / (2 * found[single][stage]) for found in turns]
        rows.append(row | {"two nodes of 1 CPU, of twice one node of 1": round(statistics.median(sums), 3)})
        text = f"{stage}: two nodes of 1 CPU against one node of 2 CPUs, the same cores"
        claims.append(claim(text, statistics.median(ratios), "ratio", 0.9))
    return rows, claims


# ------------------------------------------------------------------------------------------------ resume


def markers(stage: str) -> list[Marker]:
    """Those of 10,000 shards, as large as real ones."""
    extensions = ("tar", "parquet") if stage == "download" else ("parquet",)
    return [
        Marker(
            number,
            "f" * 64,
            {"listing.parquet": f"{number:064x}"},
            [Output(f"{number:05d}.{extension}", 1 << 20, f"{number:064x}", 10_000) for extension in extensions],
            {"rows": 10_000, "success": 9_000, "failed_to_download": 1_000, "bytes": 1 << 30},
        )
        for number in range(SHARDS)
    ]


def finished_run(root: str) -> list[str]:
    """A run folder with every stage finished, six of them of 10,000 shards; returns the command that runs it again."""
    overrides = [f"run={root}", "download.retry_failed=0"]
    config, run = load_config("configs/smoke.yaml", overrides), Run(root)
    for item in plan(config, run):
        name, folder = item.stage.name, run.stage_folder(item.stage.name, item.fingerprint)
        known = markers(name) if name in SHARDED else []
        outputs = [output for marker in known for output in marker.outputs]
        for published in PUBLISHED.get(name, ()):
            storage.write_bytes(storage.join(folder, published), b"{}")
        parts, versions = item.parts, item.parts["versions"]
        inputs, values = parts["inputs"], parts["config"]
        run.commit(Manifest(name, item.fingerprint, inputs, values, outputs, {}, 1.0, versions, shards=known))
    return [sys.executable, "-m", "pipeline", "run", "configs/smoke.yaml", *overrides]


def timed(words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command that succeeds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu


def unfinished(root: str) -> float:
    """Seconds to read 10,000 markers of a stage whose driver died."""
    folder = Run(root).stage_folder("download", "e" * 20)
    index = Index(folder, [])
    known = markers("download")
    for marker in known:
        index.add(marker)
    for marker in known[-400:]:  # written since the last batch
        write_marker(folder, marker)
    started = time.monotonic()
    assert [asdict(marker) for marker in read_markers(folder).values()] == [asdict(marker) for marker in known]
    return time.monotonic() - started


@contextmanager
def s3() -> Iterator[str]:
    """The URL of a bucket on a server of its own process."""
    port = 9123
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1"}
    try:
        for _ in range(100):
            try:
                storage.filesystem("s3://bench")[0].mkdir("bench")
                break
            except Exception:  # it is still starting; what is wrong for good shows at the first file
                time.sleep(0.3)
        yield "s3://bench"
    finally:
        server.kill()
        server.wait()


def resumes() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and claims of resumes with nothing to do."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, s3() as bucket:
        for where, root in (("local disk", folder), ("S3", bucket)):
            wall, cpu = timed(finished_run(storage.join(root, "run")))
            row = {"resume of 10,000 shards on": where, "finished, seconds": round(wall, 2)}
            row |= {"finished, CPU seconds": round(cpu, 2)}
            rows.append(row | {"unfinished, markers read in seconds": round(unfinished(storage.join(root, "run")), 2)})
            print(rows[-1], flush=True)
    claims = [
        claim(f"a resume with nothing to do, 10,000 shards, {row['resume of 10,000 shards on']}", value, "s", 30, True)
        for row in rows
        for value in [max(row["finished, seconds"], row["unfinished, markers read in seconds"])]
    ]
    return rows, claims


def main() -> None:
    """Both parts; without a RUN the second alone, and nothing is written."""
    rows, claims = resumes()
    if len(sys.argv) == 2:
        more_rows, more_claims = throughput(Run(sys.argv[1]))
        write("cluster", more_rows + rows, more_claims + claims, ("ray", "torch", "s3fs", "pyarrow"))
    for entry in claims:
        print(entry)


if __name__ == "__main__":
    main()
