"""Near duplicates by embedding: recall, precision, time and memory against comparing all pairs.

    python -m benchmarks.embedding_duplicates [--rows 1000000] [--probes 1,2,4,8]

Vectors of 512 dimensions in random directions, the hardest case for clusters, since nothing is closer to one centroid
than to the others; features of real images cluster. 10% of the rows are planted near another row, at cosines from 0.95
to 0.995, with a limit of 0.96. Recall is the share of planted pairs above the limit whose later row is dropped, by
cosine. Precision is the share of dropped rows whose cosine with the row that they repeat reaches the limit. Comparing
all pairs is measured on a sample of rows against all, and given for all rows by their number; recall of the sample is
the share of its rows that reach the limit with an earlier row, and are dropped.

Each measurement is a process of its own that runs all steps one after the other without Ray: CPU-seconds and the peak
of its resident memory. BLAS uses one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.data_scaling import measure_work
from benchmarks.result import make_claim, write_result

DIM, SHARD, LIMIT = 512, 10_000, 0.96
COSINES = (0.95, 0.965, 0.97, 0.98, 0.99, 0.995)
SAMPLE = 2_000  # rows that are compared with all
SAMPLED = "recall of the sample"
RECALL, PRECISION, MEMORY = 0.95, 1.0, 1024.0  # targets; MiB


def make_features(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns float16 features (N, D), the row that each planted row is near (K, 2), and the cosine of each (K,)."""
    rng = np.random.default_rng(0)
    feature_ND = np.empty((rows, DIM), np.float16)
    for start in range(0, rows, SHARD):
        wide_ND = rng.standard_normal((min(SHARD, rows - start), DIM), np.float32)
        feature_ND[start : start + SHARD] = wide_ND / np.linalg.norm(wide_ND, axis=1, keepdims=True)
    order = rng.permutation(rows)[: 2 * (rows // 10)].reshape(-1, 2)
    pair_K2 = np.sort(order, axis=1)
    cosine_K = np.array(COSINES)[np.arange(len(pair_K2)) % len(COSINES)]
    for start in range(0, len(pair_K2), SHARD):
        first_BD = feature_ND[pair_K2[start : start + SHARD, 0]].astype(np.float32)
        cosine_B = cosine_K[start : start + SHARD, None]
        away_BD = rng.standard_normal(first_BD.shape, np.float32)
        away_BD -= (away_BD * first_BD).sum(axis=1, keepdims=True) * first_BD
        away_BD /= np.linalg.norm(away_BD, axis=1, keepdims=True)
        feature_ND[pair_K2[start : start + SHARD, 1]] = cosine_B * first_BD + np.sqrt(1 - cosine_B**2) * away_BD
    return feature_ND, pair_K2, cosine_K


def write_inputs(folder: Path, rows: int) -> None:
    """Writes shards of annotations and scores, the features and the planted pairs."""
    from dataprep.io.keys import sample_key
    from dataprep.io.parquet import write_table
    from dataprep.io.schemas import ANNOTATIONS

    feature_ND, pair_K2, cosine_K = make_features(rows)
    np.save(folder / "features.npy", feature_ND)
    np.savez(folder / "planted.npz", pair=pair_K2, cosine=cosine_K)
    for shard, start in enumerate(range(0, rows, SHARD)):
        count = min(SHARD, rows - start)
        given = {"key": [sample_key(shard, row) for row in range(count)], "ok": [True] * count}
        given["sha256"] = [f"{row:064x}" for row in range(start, start + count)]
        given |= {"caption_chars": [20] * count, "caption_words": [4] * count}
        arrays = [pa.array(given[f.name], f.type) if f.name in given else pa.nulls(count, f.type) for f in ANNOTATIONS]
        write_table(pa.table(arrays, schema=ANNOTATIONS), folder / f"a{shard:05d}.parquet", "annotations")
        vectors = pa.array([feature.tobytes() for feature in feature_ND[start : start + count]], pa.binary(2 * DIM))
        scores = {"key": given["key"], "clip_embedding": vectors}
        write_table(pa.table(scores), folder / f"s{shard:05d}.parquet", "scores")


def run_select(folder: Path, rows: int, probes: int, out: Path) -> dict[str, Any]:
    """Selects with this filter alone."""
    from dataprep.filters.config import SelectConfig
    from dataprep.filters.pair_shards import PairShard
    from dataprep.filters.select import select_pairs
    from dataprep.filters.steps import LocalRunner

    off = {"max_aspect": None, "drop_boilerplate": False, "min_alpha_share": 0.0, "exact_duplicates": False}
    off |= {"min_side": 0, "near_duplicate_bits": None}
    config = SelectConfig(near_duplicate_cosine=LIMIT, near_duplicate_probes=probes, **off)
    shards = [
        PairShard(shard, min(SHARD, rows - start), *(str(folder / f"{kind}{shard:05d}.parquet") for kind in "as"))
        for shard, start in enumerate(range(0, rows, SHARD))
    ]
    return measure_work(lambda: {"kept": select_pairs(shards, config, LocalRunner(out)).kept})


def compare_sample(folder: Path) -> dict[str, Any]:
    """Compares the last `SAMPLE` rows with all, in blocks, and saves those that are alike to an earlier one."""
    feature_ND = np.load(folder / "features.npy", mmap_mode="r")
    first = max(0, len(feature_ND) - SAMPLE)
    sample_SD, row_S = feature_ND[first:].astype(np.float32), np.arange(first, len(feature_ND))
    seconds, again_S = 0.0, np.zeros(len(row_S), bool)
    for begin in range(0, len(feature_ND), SHARD):
        start = time.process_time()
        alike_SB = sample_SD @ feature_ND[begin : begin + SHARD].astype(np.float32).T >= LIMIT
        seconds += time.process_time() - start
        again_S |= (alike_SB & (begin + np.arange(alike_SB.shape[1]) < row_S[:, None])).any(axis=1)
    np.save(folder / "alike.npy", row_S[again_S])
    return {"cpu_seconds": round(seconds, 2), "alike": int(again_S.sum())}


def judge(folder: Path, out: Path) -> dict[str, Any]:
    """Returns recall by cosine and precision of the selection tables in ``out``."""
    from dataprep.io.keys import split_key
    from dataprep.io.parquet import read_table

    feature_ND, planted = np.load(folder / "features.npy", mmap_mode="r"), np.load(folder / "planted.npz")
    originals: list[int] = []
    for path in sorted(out.glob("finish/*/*.parquet"), key=lambda path: path.name):
        keys = read_table(str(path), "selection", ["duplicate_of"])["duplicate_of"].to_pylist()
        originals += [-1 if key is None else split_key(key)[0] * SHARD + split_key(key)[1] for key in keys]
    original_N = np.array(originals)
    gone_K = np.flatnonzero(original_N >= 0)
    right = 0
    for start in range(0, len(gone_K), SHARD):
        some = gone_K[start : start + SHARD]
        left, other = (feature_ND[rows].astype(np.float64) for rows in (some, original_N[some]))
        cosine = (left * other).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(other, axis=1)
        right += int((cosine >= LIMIT - 1e-5).sum())
    later_K, cosine_K = planted["pair"][:, 1], planted["cosine"]
    shares = {f"dropped at {cosine}": (original_N[later_K[cosine_K == cosine]] >= 0).mean() for cosine in COSINES}
    above = original_N[later_K[cosine_K > LIMIT]] >= 0
    sample = (original_N[np.load(folder / "alike.npy")] >= 0).mean()
    figures = {"recall": above.mean(), SAMPLED: sample, "precision": right / max(1, len(gone_K))} | shares
    return {name: round(float(value), 5) for name, value in figures.items()} | {"dropped": len(gone_K)}


def run_job(*words: str) -> dict[str, Any]:
    """Runs this module for one job in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.embedding_duplicates", *words]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measures, writes the result and prints its claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--probes", default="1,2,4,8")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="embedding-duplicates-") as scratch:
        folder = Path(scratch)
        write_inputs(folder, given.rows)
        sample = compare_sample(folder)
        all_pairs = sample["cpu_seconds"] * given.rows / SAMPLE / 2
        rows.append({"compared": f"{SAMPLE:,} rows with all", **sample, "cpu_seconds_of_all_pairs": round(all_pairs)})
        print(rows[-1], flush=True)
        for probes in map(int, given.probes.split(",")):
            out = folder / f"out-{probes}"
            out.mkdir()
            took = run_job("work", str(folder), str(given.rows), str(probes), str(out))
            rows.append({"rows": given.rows, "probes": probes} | took | judge(folder, out))
            shutil.rmtree(out)
            print(rows[-1], flush=True)
    name = f"{given.rows:,} vectors of {DIM}"
    default = next((row for row in rows if row.get("probes") == 4), rows[-1])
    faster = all_pairs / default["cpu_seconds"]
    claims = [
        make_claim(f"{name}: recall of planted pairs above {LIMIT}", default["recall"], "share", RECALL),
        make_claim(f"{name}: recall of {SAMPLE:,} rows compared with all", default[SAMPLED], "share", RECALL),
        make_claim(f"{name}: precision", default["precision"], "share", PRECISION),
        make_claim(f"{name}: CPU time of comparing all pairs over ours", faster, "ratio", 5),
        make_claim(f"{name}: peak memory", default["peak_mb"], "MiB", MEMORY, at_most=True),
    ]
    write_result("embedding_duplicates", rows, claims, ("numpy", "pyarrow"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        print(json.dumps(run_select(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))))
    else:
        main()
