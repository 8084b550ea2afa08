"""Select over up to 10^7 generated rows with one and two workers: the same bytes, speed-up, memory; the former code.

    python -m benchmarks.select_scaling [--rows 100000,1000000,10000000] [--baseline CHECKOUT] [--folder FOLDER]

Annotations and scores of 10,000 rows a shard go through every default filter, the top 80% by similarity, repeated
captions, exact and near duplicates; 5% of the rows repeat an earlier image, exactly or nearly. Each measurement is a
command of its own on a local Ray of one or two CPUs: wall seconds, CPU-seconds and memory (proportional set sizes) of
all its processes, Ray's included, which `benchmarks.process_tree` describes. Wall seconds of two workers mean something
on two quiet cores only: ``others`` is the share of the machine's CPU time that other processes took meanwhile. Ray's
workers run at the priority of the driver here. ``moved_kb`` are the kB a row that tasks read and write, of these
``hash_kb`` the hashes of the near-duplicate search.

CHECKOUT is a working tree of a commit at which the driver selected alone (a848339 or before); its code runs on the same
files in one process without Ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.data_scaling import make_hashes
from benchmarks.process_tree import run_measured
from benchmarks.result import make_claim, write_result
from dataprep.filters.steps import PARTS_FILE, Runner, StepTask, StepWorker, TaskResult

SIZES = (100_000, 1_000_000, 10_000_000)
SHARD = 10_000
SPEED_UP, FLAT = 1.7, 1.3  # targets
HASHES = "near_duplicate-hashes"  # a step
OPTIONS = {"top_similarity": 0.8, "max_caption_repeats": 2}
# Runs in a checkout of the former code: folder, rows, output folder.
BASELINE = """
import sys
from pathlib import Path
from dataprep.filters.config import SelectConfig
from dataprep.filters.select import PairShard, select_pairs
from dataprep.io.parquet import write_table
folder, rows, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
names = [f"{shard:05d}.parquet" for shard in range(rows // 10_000)]
shards = [PairShard(str(folder / f"a{name}"), str(folder / f"s{name}")) for name in names]
config = SelectConfig(top_similarity=0.8, max_caption_repeats=2)
select_pairs(shards, config, lambda place, table: write_table(table, out / names[place], "selection"))
"""


def write_shard(folder: Path, shard: int) -> None:
    """Writes the annotations and scores of a shard."""
    import numpy as np
    import pyarrow as pa

    from dataprep.io.keys import sample_key
    from dataprep.io.parquet import write_table
    from dataprep.io.schemas import ANNOTATIONS

    rng = np.random.default_rng(shard)
    hash_N, thumbnail_ND = make_hashes(rng, SHARD)
    side_N2 = rng.integers(50, 500, (SHARD, 2))
    texts = [
        f"a photo of a red house number {row // 10 if row % 10 == 0 else shard * SHARD + row} by the lake"
        for row in range(SHARD)
    ]
    columns = {
        "key": [sample_key(shard, row) for row in range(SHARD)],
        "ok": rng.random(SHARD) < 0.95,
        "width": side_N2[:, 0],
        "height": side_N2[:, 1],
        "aspect": side_N2.max(axis=1) / side_N2.min(axis=1),
        "bytes": rng.integers(1_000, 90_000, SHARD),
        "sha256": [hashlib.sha256(value.tobytes()).hexdigest() for value in hash_N],
        "phash": hash_N,
        "thumbnail": [value.tobytes() for value in thumbnail_ND],
        "caption": texts,
        "caption_chars": [len(text) for text in texts],
        "caption_words": np.full(SHARD, 11),
        "alpha_share": np.full(SHARD, 0.8),
        "language": ["en"] * SHARD,
        "language_confidence": np.full(SHARD, 0.9),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in ANNOTATIONS]
    write_table(pa.table(arrays, schema=ANNOTATIONS), folder / f"a{shard:05d}.parquet", "annotations")
    scores = {"key": columns["key"], "clip_similarity": pa.array(rng.random(SHARD), pa.float32())}
    write_table(pa.table(scores), folder / f"s{shard:05d}.parquet", "scores")


def run_select(folder: Path, rows: int, workers: int, out: str) -> None:
    """Selects on a local Ray of ``workers`` CPUs into a run folder ``out``."""
    from dataprep.filters.config import SelectConfig
    from dataprep.filters.pair_shards import PairShard
    from dataprep.filters.select import select_pairs
    from pipeline.runtime.config import ClusterConfig
    from pipeline.runtime.context import Context
    from pipeline.stages.select import ClusterRunner
    from pipeline.store.run import Run

    shards = [
        PairShard(shard, SHARD, str(folder / f"a{shard:05d}.parquet"), str(folder / f"s{shard:05d}.parquet"))
        for shard in range(rows // SHARD)
    ]
    run, cluster = Run(out), ClusterConfig(cpus=workers)
    stage = run.stage_folder("select", "0" * 20)
    ctx: Context[Any, Any] = Context("select", config=None, inputs=None, folder=stage, run=run, cluster=cluster)
    cluster_runner = ClusterRunner(ctx)
    runner = CountingRunner(cluster_runner)
    chosen = select_pairs(shards, SelectConfig(**OPTIONS), runner)
    cluster_runner.end()
    moved = {"moved_kb": sum(runner.bytes.values()), "hash_kb": runner.bytes[HASHES]}
    print(json.dumps({"kept": chosen.kept} | {name: round(size / 1e3 / rows, 3) for name, size in moved.items()}))


class CountingRunner:
    """Counts the bytes that tasks read and write, by step."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.bytes = runner, Counter[str]()

    def run(
        self, name: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: Sequence[StepTask]
    ) -> list[TaskResult]:
        """Runs the tasks; what they exchange is read once by the tasks of the next step."""
        results = self.runner.run(name, worker, arguments, tasks)
        for task in tasks:
            self.bytes[name if name != HASHES else "inputs"] += sum(map(os.path.getsize, task.files.values()))
        for result in results:
            for file, path in result.files.items():
                self.bytes[name] += os.path.getsize(path) * (2 if file == PARTS_FILE else 1)
        return results


def hash_tables(folder: Path) -> str:
    """Returns the hash of all selection tables below a folder, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet"), key=lambda path: path.name):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def hash_verdicts(folder: Path) -> str:
    """Returns the hash of what all selection tables below a folder decide, whatever else they tell."""
    import pyarrow.parquet as pq  # the former code's tables are of another schema version

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet"), key=lambda path: path.name):
        table = pq.read_table(path, columns=["key", "keep", "reason", "split"])
        digest.update(json.dumps(table.to_pydict()).encode())
    return digest.hexdigest()


def measure(words: list[str], checkout: Path, out: Path) -> dict[str, Any]:
    """Runs a command that selects into ``out``; returns what it took, what it printed and the hash of its tables."""
    out.mkdir()
    env = os.environ | {"PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    before = psutil.cpu_times()
    took = run_measured([sys.executable, *words], out, env)
    if took.returncode:
        raise RuntimeError(took.output)
    others = sum(psutil.cpu_times()[:3]) - sum(before[:3]) - took.cpu_seconds  # user, nice, system
    figures = {"seconds": took.seconds, "cpu_seconds": took.cpu_seconds, "peak_mib": took.peak_mib}
    figures["others"] = max(0.0, others / took.seconds / psutil.cpu_count())
    printed = next((line for line in took.output.splitlines()[::-1] if line.startswith("{")), "{}")
    found = {name: round(value, 2 if name == "others" else 1) for name, value in figures.items()}
    return found | json.loads(printed) | {"tables": hash_tables(out), "verdicts": hash_verdicts(out)}


def main() -> None:
    """Measures every size, writes the result and prints its claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(map(str, SIZES)), help="sizes, the largest last")
    parser.add_argument("--baseline", type=Path, help="working tree of the former code")
    parser.add_argument("--folder", type=Path, help="where inputs are kept for another call")
    given = parser.parse_args()
    sizes = [int(size) for size in given.rows.split(",")]
    here, rows = Path(__file__).parent.parent, list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="select-scaling-") as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(sizes[-1] // SHARD):
            if not (folder / f"s{shard:05d}.parquet").exists():
                write_shard(folder, shard)
        for size in sizes:
            for workers in (1, 2):
                words = ["-m", "benchmarks.select_scaling", "work", str(folder), str(size), str(workers)]
                out = Path(scratch) / f"{size}-{workers}"
                row = {"rows": size, "workers": workers} | measure([*words, str(out)], here, out)
                rows.append(row)
                print(row, flush=True)
            if given.baseline is not None:
                out = Path(scratch) / f"{size}-baseline"
                words = ["-c", BASELINE, str(folder), str(size), str(out)]
                row = {"rows": size, "workers": "former code, one process"} | measure(words, given.baseline, out)
                rows.append(row)
                print(row, flush=True)
    write_result("select_scaling", rows, make_claims(rows, sizes), ("numpy", "pyarrow", "ray"))


def make_claims(rows: list[dict[str, Any]], sizes: list[int]) -> list[dict[str, Any]]:
    """Returns the claims about the largest size."""
    found = {(row["rows"], row["workers"]): row for row in rows}
    small, large = sizes[0], sizes[-1]
    one, two = found[large, 1], found[large, 2]
    name = f"{large:,} rows"
    claims = [
        make_claim(f"{name}: tables of 1 and 2 workers are equal", float(one["tables"] == two["tables"]), "", 1),
        make_claim(f"{name}: 2 workers over 1, wall time", one["seconds"] / two["seconds"], "ratio", SPEED_UP),
        make_claim(
            f"{name} over {small:,}, 2 workers: peak memory of all processes",
            two["peak_mib"] / found[small, 2]["peak_mib"],
            "ratio",
            FLAT,
            at_most=True,
        ),
    ]
    former = next((row for row in rows if row["rows"] == large and isinstance(row["workers"], str)), None)
    if former is not None:
        same = float(one["verdicts"] == former["verdicts"])
        claims.append(make_claim(f"{name}: verdicts are the former code's", same, "", 1))
        cpu = one["cpu_seconds"] / former["cpu_seconds"]
        claims.append(make_claim(f"{name}: CPU time over the former code's", cpu, "ratio", 1.5, at_most=True))
        faster = former["seconds"] / two["seconds"]
        claims.append(make_claim(f"{name}: 2 workers over the former code, wall time", faster, "ratio", 1))
    return claims


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        run_select(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
