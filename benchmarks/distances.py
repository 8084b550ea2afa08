"""Streaming pass over image features: error (1e-6), independence of the number of files, memory by number of images.

    python -m benchmarks.distances

Features are random, of 64 dimensions. The independent computation uses float64 on features held in memory: means and
covariances by numpy, the root of their product by scipy.linalg.sqrtm, KID's sums by numpy over whole matrices. Memory
is the peak of a separate process that reads files of 1,000 images each.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.linalg import sqrtm

from benchmarks.result import make_claim, write_result
from dataprep.io.parquet import write_table
from eval.metrics.distances import frechet_distance, kernel_distance
from eval.metrics.feature_sets import FeatureSet

DIM, SUBSAMPLE, SIZES, SPLITS = 64, 1000, (1_000, 10_000, 100_000), (1, 7, 50)
EQUAL, FLAT = 1e-6, 1.1


def main() -> None:
    """Measures, prints and writes the result; given a folder, reads its files and prints the peak memory."""
    if len(sys.argv) > 1:
        measure_pass(sys.argv[1])
        return
    # Equal sizes, so that KID uses both sets whole.
    one, other = _make_features(3000, 1), _make_features(3000, 2) + np.float32(0.1)
    found = [
        _measure_distances(_collect_parts(one, parts, 5000), _collect_parts(other, parts, 5000)) for parts in SPLITS
    ]
    expected = _compute_independently(one.astype(np.float64), other.astype(np.float64))
    errors = {key: abs(found[0][key] / value - 1) for key, value in expected.items()}
    rows: list[dict[str, Any]] = [{"images": size, **_measure_peak(size)} for size in SIZES]
    claims = [_make_exact_claim(f"relative error of {key}", error, EQUAL) for key, error in errors.items()]
    spread = max(abs(each[key] - found[0][key]) for each in found for key in expected)
    claims.append(_make_exact_claim(f"largest difference between {SPLITS} files", spread, 0.0))
    ratio = rows[-1]["peak_mib"] / rows[0]["peak_mib"]
    claims.append(make_claim(f"peak memory of {SIZES[-1]} images over {SIZES[0]}", ratio, "x", FLAT, at_most=True))
    write_result("distances", rows, claims, ("numpy", "scipy", "pyarrow"), dim=DIM)


def _measure_distances(one: FeatureSet, other: FeatureSet) -> dict[str, float]:
    kid, _ = kernel_distance(np.stack(one.sample.taken()), np.stack(other.sample.taken()), size=len(one))
    return {"fd": frechet_distance(one.moments, other.moments), "kid": kid}


def _make_exact_claim(text: str, value: float, target: float) -> dict[str, Any]:
    """Returns a claim whose value is not rounded: it is far below four decimals."""
    return make_claim(text, value, "", target, at_most=True) | {"value": float(f"{value:.2e}")}


def _make_features(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (count, DIM)).astype(np.float32)


def _collect_parts(features_ND: np.ndarray, parts: int, subsample: int) -> FeatureSet:
    whole, start = FeatureSet(DIM, subsample), 0
    for part in np.array_split(features_ND, parts):
        other = FeatureSet(DIM, subsample)
        other.add([str(start + row) for row in range(len(part))], part)
        whole.merge(other)
        start += len(part)
    return whole


def _compute_independently(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    fd = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    within = []
    for x in (a, b):
        kernel = (x @ x.T / DIM + 1) ** 3
        within.append((kernel.sum() - np.diag(kernel).sum()) / (len(x) * (len(x) - 1)))
    kid = sum(within) - 2 * ((a @ b.T / DIM + 1) ** 3).mean()
    return {"fd": float(fd), "kid": float(kid)}


def _measure_peak(size: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(size // 1000):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(_make_features(1000, number).ravel()), DIM)
            ids = [f"{number}-{row}" for row in range(1000)]
            columns = {"id": ids, "set": ["sample"] * 1000, "size": pa.array([64] * 1000, pa.int32()), "caption": ids}
            table = pa.table({**columns, "text": vectors, "image_clip": vectors})
            write_table(table, Path(folder) / f"{number:05d}.parquet", "features")
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.distances", folder], capture_output=True, text=True, check=True
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_pass(folder: str) -> None:
    """Reads the files of ``folder`` in one pass; prints the peak memory and CPU-seconds as JSON."""
    from eval.metrics.feature_tables import collect_features

    before = resource.getrusage(resource.RUSAGE_SELF)
    paths: Sequence[str] = sorted(map(str, Path(folder).glob("*.parquet")))
    collect_features(paths, SUBSAMPLE, 64)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    extra = (after.ru_maxrss - before.ru_maxrss) / 1024
    print(json.dumps({"peak_mib": after.ru_maxrss / 1024, "of_the_pass_mib": extra, "cpu_seconds": round(spent, 2)}))


if __name__ == "__main__":
    main()
