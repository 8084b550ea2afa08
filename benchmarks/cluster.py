"""Cost of distribution: a second node on the same cores, and a resume of 10,000 shards with nothing to do.

    python -m benchmarks.cluster RUN

RUN is a finished run such as runs/demo, whose listing, download, pack, encoder and CLIP are the inputs. Three clusters
take turns on one machine: a node of one CPU, one of two CPUs, two of one CPU each. Rates are of the steady state: rows
of the shards that end after every worker's first, over the time that they took. A ratio compares the clusters of one
turn; the median over the turns is reported.

The resume is of a run folder as a run of 10,000 shards leaves it, on a local disk and on S3 (moto's server in its own
process on the same cores): finished, so that the command finds all stages done; and with a download whose driver died
before it wrote the manifest.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.result import make_claim, write_result
from dataprep.io import storage
from dataprep.io.redact import FORGOTTEN_FILE, ForgottenList
from eval.clip.config import ScoreConfig
from pipeline.config import RunConfig
from pipeline.config_loading import load_config
from pipeline.execution.plan import plan_run
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.context import Context
from pipeline.runtime.ray_session import connect_ray
from pipeline.runtime.shard_map import map_shards
from pipeline.runtime.shard_worker import ShardTask, ShardWorker
from pipeline.stages.clip import read_clip_spec
from pipeline.stages.download import DownloadWorker
from pipeline.stages.embed import EmbedWorker
from pipeline.stages.score import ScoreWorker
from pipeline.stages.text_encoder import encoder_location
from pipeline.store.artifact import Manifest, Shard, ShardRecord
from pipeline.store.markers import Marker, MarkerBatches, Output, read_markers, write_marker
from pipeline.store.run import Run

CLUSTERS = {"one node of 1 CPU": (1,), "one node of 2 CPUs": (2,), "two nodes of 1 CPU": (1, 1)}  # CPUs per node
REPEAT, ROUNDS = 3, 3  # passes over each shard of the run; turns of each cluster
SHARDS, SHARDED_STAGES = 10_000, ("download", "annotate", "score", "select", "pack", "embed")
WORKERS: dict[str, type[ShardWorker]] = {"download": DownloadWorker, "score": ScoreWorker, "embed": EmbedWorker}
FINGERPRINT = "0" * 20


class TimedWorker:
    """Wraps the worker of ``stage`` and adds the time at which each shard ended to its counters."""

    def __init__(self, stage: str, arguments: Mapping[str, Any]) -> None:
        self.worker = WORKERS[stage](**arguments)

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Runs the wrapped worker."""
        return self.worker(task) | {"ended_ms": int(time.time() * 1000)}


@dataclass(frozen=True)
class StagePass:
    """The work of a stage: arguments of its worker, shards, and the counter that is its unit of work."""

    arguments: dict[str, Any]
    shards: list[Shard]
    unit: str


@contextmanager
def start_cluster(cpus: Sequence[int]) -> Iterator[ClusterConfig]:
    """Starts a raylet per node, with ``cpus`` CPUs each, and connects this process; yields the cluster's config."""
    store = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], **store})
    try:
        for count in cpus[1:]:
            cluster.add_node(num_cpus=count, **store)
        config = ClusterConfig(address=cluster.address, retries=0)
        connect_ray(config)
        yield config
    finally:
        ray.shutdown()
        cluster.shutdown()


def make_passes(run: Run) -> dict[str, StagePass]:
    """Returns the work of each measured stage."""
    found, config = run.artifacts(), RunConfig.model_validate(run.record()["config"], strict=False)
    download = {
        "config": config.download,
        "scenes": config.listing.scenes,
        "seed": config.seed,
        "forgotten": ForgottenList(path=run.path(FORGOTTEN_FILE)),
    }
    score = {"clip": read_clip_spec(found["clip"]), "max_pixels": 1 << 24, "score": ScoreConfig()}
    embed = {"config": config.embed, "encoder": encoder_location(found["encoder"])}

    def list_shards(stage: str) -> list[Shard]:
        pieces = [{f"{stage}.{name}": path for name, path in shard.files.items()} for shard in found[stage].shards]
        return [Shard(number, files) for number, files in enumerate(pieces * REPEAT)]

    return {
        "download": StagePass(download, list_shards("listing"), "rows"),
        "score": StagePass(score, list_shards("download"), "rows"),
        "embed": StagePass(embed, list_shards("pack"), "captions"),
    }


def run_pass(stage: str, work: StagePass, cluster: ClusterConfig, folder: str) -> list[Marker]:
    """Runs the stage's worker over its shards, as a stage of a new run in ``folder``; returns the shards' markers."""
    run = Run(folder)
    outputs = run.stage_folder(stage, FINGERPRINT)
    ctx = Context(stage=stage, config=None, inputs=None, folder=outputs, run=run, cluster=cluster)
    map_shards(ctx, TimedWorker, {"stage": stage, "arguments": work.arguments}, work.shards)
    return ctx.finished


def compute_rate(markers: Sequence[Marker], workers: int, unit: str) -> float:
    """Returns units per second, from the moment at which each worker has ended its first shard."""
    ended = sorted(markers, key=lambda marker: marker.counters["ended_ms"])
    seconds = (ended[-1].counters["ended_ms"] - ended[workers - 1].counters["ended_ms"]) / 1000
    return sum(marker.counters[unit] for marker in ended[workers:]) / seconds


def measure_turn(run: Run, name: str) -> dict[str, float]:
    """Returns the units per second of each stage on the cluster ``name``."""
    cpus, rates = CLUSTERS[name], {}
    with start_cluster(cpus) as cluster, tempfile.TemporaryDirectory() as folder:
        for stage, work in make_passes(run).items():
            rates[stage] = compute_rate(run_pass(stage, work, cluster, folder), sum(cpus), work.unit)
            print(f"{name}: {stage} {rates[stage]:.0f} {work.unit}/s", flush=True)
    return rates


def measure_throughput(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns rows and claims about the three clusters."""
    turns = [{name: measure_turn(run, name) for name in CLUSTERS} for _ in range(ROUNDS)]
    rows, claims = [], []
    single, wide, two = CLUSTERS
    for stage in turns[0][single]:
        row: dict[str, Any] = {"stage": stage}
        for name in CLUSTERS:
            row[f"{name}, rows/s"] = [round(found[name][stage], 1) for found in turns]
        ratios = [found[two][stage] / found[wide][stage] for found in turns]
        sums = [found[two][stage] / (2 * found[single][stage]) for found in turns]
        rows.append(row | {"two nodes of 1 CPU over twice one node of 1 CPU": round(statistics.median(sums), 3)})
        text = f"{stage}: two nodes of 1 CPU over one node of 2 CPUs, the same cores"
        claims.append(make_claim(text, statistics.median(ratios), "ratio", 0.9))
    return rows, claims


# ------------------------------------------------------------------------------------------------ resume


def make_markers(stage: str) -> list[Marker]:
    """Returns the markers of `SHARDS` shards, as large as real ones."""
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


def make_finished_run(root: str) -> list[str]:
    """Makes a finished run whose `SHARDED_STAGES` have `SHARDS` shards; returns the command that runs it again."""
    overrides = [f"run={root}", "download.retry_failed=0"]
    config, run = load_config("configs/smoke.yaml", overrides), Run(root)
    for item in plan_run(config, run):
        name, parts = item.stage.name, item.parts
        markers = make_markers(name) if name in SHARDED_STAGES else []
        for published in item.stage.type.published:
            storage.write_bytes(storage.join(run.stage_folder(name, item.fingerprint), published), b"{}")
        manifest = Manifest(
            stage=name,
            fingerprint=item.fingerprint,
            inputs=parts.inputs,
            config=parts.config,
            outputs=[output for marker in markers for output in marker.outputs],
            counters={},
            seconds=1.0,
            versions=parts.versions,
            shards=[ShardRecord.from_marker(marker) for marker in markers],
        )
        run.commit(manifest)
    return [sys.executable, "-m", "pipeline", "run", "configs/smoke.yaml", *overrides]


def time_command(words: list[str]) -> tuple[float, float]:
    """Returns the wall and CPU seconds of a command, which must succeed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu


def time_markers(root: str) -> float:
    """Returns the seconds it takes to read the markers of a stage whose driver died."""
    folder = Run(root).stage_folder("download", "e" * 20)
    index = MarkerBatches(folder, [])
    known = make_markers("download")
    for marker in known:
        index.add(marker)
    for marker in known[-400:]:  # since the last batch
        write_marker(folder, marker)
    started = time.monotonic()
    assert [asdict(marker) for marker in read_markers(folder).values()] == [asdict(marker) for marker in known]
    return time.monotonic() - started


@contextmanager
def start_s3() -> Iterator[str]:
    """Starts an S3 server in its own process; yields the URL of a bucket."""
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
            except Exception:  # still starting; a lasting error shows at the first file
                time.sleep(0.3)
        yield "s3://bench"
    finally:
        server.kill()
        server.wait()


def measure_resumes() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns rows and claims about resumes with nothing to do."""
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as folder, start_s3() as bucket:
        for where, root in (("local disk", folder), ("S3", bucket)):
            wall, cpu = time_command(make_finished_run(storage.join(root, "run")))
            markers = time_markers(storage.join(root, "run"))
            row: dict[str, Any] = {"resume of 10,000 shards on": where, "finished, seconds": round(wall, 2)}
            row |= {"finished, CPU seconds": round(cpu, 2), "unfinished, markers read in seconds": round(markers, 2)}
            rows.append(row)
            print(row, flush=True)
            text = f"resume with nothing to do, 10,000 shards, {where}"
            slower = max(row["finished, seconds"], row["unfinished, markers read in seconds"])
            claims.append(make_claim(text, slower, "s", 30, at_most=True))
    return rows, claims


def main() -> None:
    """Measures both parts and writes the result; without RUN measures the resumes only and writes nothing."""
    rows, claims = measure_resumes()
    if len(sys.argv) == 2:
        more_rows, more_claims = measure_throughput(Run(sys.argv[1]))
        write_result("cluster", more_rows + rows, more_claims + claims, ("ray", "torch", "s3fs", "pyarrow"))
    for entry in claims:
        print(entry)


if __name__ == "__main__":
    main()
