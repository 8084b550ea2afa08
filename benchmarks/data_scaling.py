"""Time and memory of listing, annotate, select and near-duplicate search against the number of rows, 10^3 to 10^6.

    python -m benchmarks.data_scaling

No peer is compared. Each measurement runs in its own process: CPU-seconds of the work (the function that a stage calls)
without imports and without Ray, and the peak resident memory of the process. Another process makes the inputs:

- listing: a Parquet list with LAION's columns to listing shards;
- annotate: download shards of small images (32x32, from a pool of 64) with English, Chinese and German captions; a
  million of them take some minutes, longer than everything else together;
- select: annotations and scores through every default filter, repeated captions, exact and near duplicates, and the top
  80% by similarity; 5% of the rows repeat an earlier image, exactly or nearly;
- dedup: select with the near-duplicate search alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result import make_claim, write_result

SIZES = (1_000, 10_000, 100_000, 1_000_000)
REPEATS = {1_000: 2, 10_000: 2, 100_000: 1, 1_000_000: 1}
SHARD = 5_000
PHASES = ("listing", "select", "dedup", "annotate")
LINEAR, FLAT = 1.5, 1.3  # targets


def make_captions(count: int, first: int) -> list[str]:
    """Returns captions in three languages; a tenth of them recur."""
    forms = (
        "a photo of a red house number {} by the lake",
        "湖边的红色房子第{}号的照片",
        "ein rotes Haus Nummer {} am See",
    )
    return [forms[index % 3].format(index // 10 if index % 10 == 0 else index) for index in range(first, first + count)]


def write_list(folder: Path, rows: int) -> None:
    """Writes a Parquet list with LAION's columns."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, SHARD):
        count = min(SHARD, rows - start)
        numbers = {name: rng.random(count) for name in ("similarity", "punsafe", "pwatermark")}
        urls = [f"http://images{index % 97}.example/{index:09d}.jpg" for index in range(start, start + count)]
        table = pa.table({"URL": urls, "TEXT": make_captions(count, start)} | numbers)
        writer = writer or pq.ParquetWriter(folder / "list.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def write_downloads(folder: Path, rows: int) -> None:
    """Writes download shards whose images come from a small pool."""
    import io
    import tarfile

    import cv2
    import numpy as np
    import pyarrow as pa

    from dataprep.io.parquet import write_table

    rng = np.random.default_rng(0)
    pool = [cv2.imencode(".png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))[1].tobytes() for _ in range(64)]
    for shard, start in enumerate(range(0, rows, SHARD)):
        count = min(SHARD, rows - start)
        keys = [f"{index:09d}" for index in range(start, start + count)]
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index, key in enumerate(keys):
                member = tarfile.TarInfo(f"{key}.png")
                member.size = len(pool[index % 64])
                tar.addfile(member, io.BytesIO(pool[index % 64]))
        columns = {
            "key": keys,
            "caption": make_captions(count, start),
            "status": ["success"] * count,
            "sha256": ["0"] * count,
        }
        sizes = {name: pa.array([32] * count, pa.int32()) for name in ("original_width", "original_height")}
        write_table(pa.table(columns | sizes), folder / f"{shard:05d}.parquet", "download")


def make_hashes(rng: Any, count: int) -> tuple[Any, Any]:
    """Returns hashes (N,) and thumbnails (N, 192); 5% repeat an earlier one of the block, half of these exactly."""
    import numpy as np

    hash_N = rng.integers(0, 2**64, count, dtype=np.uint64)
    thumbnail_ND = rng.integers(0, 256, (count, 192), dtype=np.uint8)
    later_P = np.arange(10, count, 20)
    earlier_P = later_P - rng.integers(1, 10, len(later_P))
    bit_P = np.where(rng.random(len(later_P)) < 0.5, 0, rng.integers(0, 2**64, len(later_P), dtype=np.uint64))
    hash_N[later_P] = hash_N[earlier_P] ^ (np.uint64(1) << (bit_P.astype(np.uint64) % np.uint64(64)))
    thumbnail_ND[later_P] = thumbnail_ND[earlier_P]
    return hash_N, thumbnail_ND


def write_annotations(folder: Path, rows: int) -> None:
    """Writes annotations and scores."""
    import hashlib

    import numpy as np
    import pyarrow as pa

    from dataprep.annotate import compute_alpha_share, count_words
    from dataprep.io.parquet import write_table
    from dataprep.io.schemas import ANNOTATIONS

    rng = np.random.default_rng(0)
    for shard, start in enumerate(range(0, rows, SHARD)):
        count = min(SHARD, rows - start)
        hash_N, thumbnail_ND = make_hashes(rng, count)
        texts, side = make_captions(count, start), rng.integers(50, 500, (count, 2))
        columns = {
            "key": [f"{index:09d}" for index in range(start, start + count)],
            "ok": rng.random(count) < 0.95,
            "width": side[:, 0],
            "height": side[:, 1],
            "aspect": side.max(axis=1) / side.min(axis=1),
            "bytes": rng.integers(1_000, 90_000, count),
            "sha256": [hashlib.sha256(value.tobytes()).hexdigest() for value in hash_N],
            "phash": hash_N,
            "thumbnail": [value.tobytes() for value in thumbnail_ND],
            "caption": texts,
            "caption_chars": [len(text) for text in texts],
            "caption_words": [count_words(text) for text in texts],
            "alpha_share": [compute_alpha_share(text) for text in texts],
            "language": ["en"] * count,
            "language_confidence": [0.9] * count,
        }
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in ANNOTATIONS]
        write_table(pa.table(arrays, schema=ANNOTATIONS), folder / f"a{shard:05d}.parquet", "annotations")
        scores = {"key": columns["key"], "clip_similarity": pa.array(rng.random(count), pa.float32())}
        write_table(pa.table(scores), folder / f"s{shard:05d}.parquet", "scores")


def run_listing(folder: Path, rows: int) -> dict[str, Any]:
    """Does the stage's work."""
    from dataprep.listing.config import ListingConfig
    from dataprep.listing.writer import write_listing

    config = ListingConfig(source="table", path=str(folder / "list.parquet"), rows_per_shard=SHARD)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        return measure_work(lambda: write_listing(config, 0, out))


def run_annotate(folder: Path, rows: int) -> dict[str, Any]:
    """Does the stage's work, one shard after another."""
    from dataprep.annotate import annotate_shard
    from dataprep.annotate_config import AnnotateConfig

    def work() -> dict[str, int]:
        for tar in sorted(folder.glob("*.tar")):
            annotate_shard(tar, tar.with_suffix(".parquet"), folder / "out", AnnotateConfig())
        return {"rows": rows}

    return measure_work(work)


def run_select(folder: Path, rows: int) -> dict[str, Any]:
    """Does the stage's work in this process, including the selection tables."""
    from dataprep.filters.config import SelectConfig

    return select_rows(folder, SelectConfig(top_similarity=0.8, max_caption_repeats=1))


def run_dedup(folder: Path, rows: int) -> dict[str, Any]:
    """Does the stage's work with near duplicates as its only filter."""
    from dataprep.filters.config import SelectConfig

    off = {"max_aspect": None, "drop_boilerplate": False, "min_alpha_share": 0.0, "exact_duplicates": False}
    return select_rows(folder, SelectConfig(min_side=0, min_caption_words=0, min_caption_chars=0, **off))


def select_rows(folder: Path, config: Any) -> dict[str, Any]:
    """Selects, one task after another."""
    import pyarrow.parquet as pq

    from dataprep.filters.pair_shards import PairShard
    from dataprep.filters.select import select_pairs
    from dataprep.filters.steps import LocalRunner

    shards = []
    for number, path in enumerate(sorted(folder.glob("a*.parquet"))):
        shards.append(
            PairShard(number, pq.read_metadata(path).num_rows, str(path), str(path.with_name("s" + path.name[1:])))
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        return measure_work(lambda: {"kept": select_pairs(shards, config, LocalRunner(Path(scratch))).kept})


def measure_work(work: Any) -> dict[str, Any]:
    """Runs ``work``; returns its CPU-seconds, the peak memory of the process in MiB and its counters."""
    start = time.process_time()
    counters = work()
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {"cpu_seconds": seconds, "peak_mb": peak / 1024} | (counters or {})


INPUTS = {"listing": write_list, "annotate": write_downloads, "select": write_annotations, "dedup": write_annotations}
WORK = {"listing": run_listing, "annotate": run_annotate, "select": run_select, "dedup": run_dedup}


def run_job(job: str, phase: str, rows: int, folder: str) -> str:
    """Runs this module for one job in its own process; returns its output."""
    command = [sys.executable, "-m", "benchmarks.data_scaling", job, phase, str(rows), folder]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measures every phase at every size, writes the result and prints its claims."""
    found: list[dict[str, Any]] = []
    for phase in PHASES:
        for rows in SIZES:
            with tempfile.TemporaryDirectory(prefix="imagen-ray-scaling-") as folder:
                run_job("inputs", phase, rows, folder)
                runs = [json.loads(run_job("work", phase, rows, folder)) for _ in range(REPEATS[rows])]
            seconds, peak = median(run["cpu_seconds"] for run in runs), max(run["peak_mb"] for run in runs)
            row = {"phase": phase, "rows": rows, "cpu_seconds": round(seconds, 3), "peak_mb": round(peak, 1)}
            row |= {"microseconds_per_row": round(seconds / rows * 1e6, 2), "runs": REPEATS[rows]}
            row |= {name: runs[0][name] for name in ("kept",) if name in runs[0]}
            found.append(row)
            print(row, flush=True)
    claims = []
    for phase in PHASES:
        sizes = {row["rows"]: row for row in found if row["phase"] == phase}
        large, small = sizes.pop(max(sizes)), sizes[10_000]
        # Start-up dominates small sizes: the largest is compared with the cheapest smaller size.
        least = min(row["microseconds_per_row"] for row in sizes.values())
        slower, name = large["microseconds_per_row"] / least, f"{phase}, {large['rows']:,} rows"
        larger = large["peak_mb"] / small["peak_mb"]
        claims.append(
            make_claim(f"{name} over the best smaller size: CPU time per row", slower, "ratio", LINEAR, at_most=True)
        )
        claims.append(make_claim(f"{name} over 10,000: peak memory", larger, "ratio", FLAT, at_most=True))
    write_result("data_scaling", found, claims, ("numpy", "pyarrow", "py3langid", "ImageHash"))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        job, phase, rows, folder = sys.argv[1:]
        result = (INPUTS if job == "inputs" else WORK)[phase](Path(folder), int(rows))
        if result is not None:
            print(json.dumps(result))
