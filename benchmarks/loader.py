"""Our loader beside webdataset, mosaicml-streaming and Hugging Face datasets, and a loop over tensors in memory.

    pip install -c constraints.txt -e '.[bench]'
    pip install --no-deps --target .peers mosaicml-streaming brotli python-snappy cramjam zstd catalogue
    PYTHONPATH=.peers python -m benchmarks.loader

mosaicml-streaming is put in a folder of its own since it asks for an older transformers, which its loader does not use.
64x64 JPEGs, float16 embeddings 512 wide at their true length (web-like caption lengths, cut at 64 tokens), batches of 64,
read from a local disk that has them in its page cache. Every pass has a process of its own; the sides take turns, three
times each, and the median is kept. One epoch, the first, is measured: everything that is read is read in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from benchmarks.captions import captions, lengths, photo
from benchmarks.loader_sides import BATCH, PEERS, SIDES, SIZE, Sample
from benchmarks.result import claim, write

SAMPLES, WIDTH, LONGEST, ROUNDS = 1536, 512, 64, 1
TOKENS_A_WORD = 1.4
PACKAGES = ("pyarrow", "numpy", "torch", "webdataset", "datasets", "opencv-python-headless", "pillow")


def make_samples(count: int) -> list[Sample]:
    """The samples that all sides store."""
    rng = np.random.default_rng(0)
    texts = captions(count, 5000, rng)
    tokens = np.clip(np.rint(lengths(count, rng) * TOKENS_A_WORD) + 1, 2, LONGEST).astype(int)
    # Channels of unlike size, as encoders have them.
    scale_D = np.exp(rng.normal(-2, 0.5, WIDTH)).astype(np.float32)
    samples = []
    for index in range(count):
        done, jpeg = cv2.imencode(".jpg", photo(rng, SIZE)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert done
        text_LD = (rng.standard_normal((tokens[index], WIDTH), np.float32) * scale_D).astype(np.float16)
        samples.append(Sample(f"{index:09d}", texts[index], jpeg.tobytes(), text_LD))
    return samples


def seconds_of_cpu() -> float:
    """Of this process and of the children that it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(side: str, folder: Path, middle: bool) -> dict[str, float]:
    """One pass in this process: an epoch, or only the batch at its middle."""
    began = time.monotonic()
    loader = SIDES[side](folder)
    if middle:
        images, *_ = loader.middle(SAMPLES // BATCH // 2)
        return {"resume_s": time.monotonic() - began, "seen": len(images)}
    seen, first, checksum = 0, 0.0, 0
    cpu, wall = seconds_of_cpu(), time.monotonic()
    for images, text, mask in loader.epoch():
        first = first or time.monotonic() - began
        seen += len(images)
        checksum += int(images[0, 0, 0, 0]) + int(mask.sum())
        assert text.shape[:2] == mask.shape
    cpu, wall = seconds_of_cpu() - cpu, time.monotonic() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": cpu, "wall_s": wall, "first_batch_s": first, "peak_mb": peak, "seen": seen, "checksum": checksum}


def child(side: str, folder: Path, *words: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader", "--side", side, "--folder", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def row(side: str, folder: Path, passes: list[dict[str, float]], middles: list[dict[str, float]]) -> dict[str, Any]:
    """The medians of a side."""
    assert len({one["seen"] for one in passes}) == 1 and passes[0]["seen"] >= SAMPLES - BATCH, passes
    cpu, wall = median(one["cpu_s"] for one in passes), median(one["wall_s"] for one in passes)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "side": side,
        "samples_a_second": round(passes[0]["seen"] / wall),
        "samples_a_cpu_second": round(passes[0]["seen"] / cpu),
        "cpu_s_a_thousand": round(1000 * cpu / passes[0]["seen"], 4),
        "peak_mb": round(median(one["peak_mb"] for one in passes)),
        "first_batch_s": round(median(one["first_batch_s"] for one in passes), 3),
        "resume_s": round(median(one["resume_s"] for one in middles), 3),
        "bytes_a_sample": round(size / SAMPLES),
    }


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is said of the table."""
    found = {entry["side"]: entry for entry in rows}
    rate = {side: entry["samples_a_cpu_second"] for side, entry in found.items()}
    fastest = max((side for side in rate if side in PEERS), key=lambda side: rate[side])
    ours = max(("ours, raw float16", "ours, raw int8"), key=lambda side: rate[side])
    jpeg = rate["ours, JPEG"] / rate[fastest]
    bytes_more = found[ours]["bytes_a_sample"] / found["ours, JPEG"]["bytes_a_sample"]
    return [
        claim(f"same JPEG bytes, samples a CPU-second over the fastest peer ({fastest})", jpeg, "times", 1.5),
        claim(f"{ours} over the fastest peer ({fastest})", rate[ours] / rate[fastest], "times", 3.0),
        claim(f"{ours} over tensors in memory", rate[ours] / rate["memory"], "times", 0.7),
        claim("seek to the middle of an epoch, JPEG", found["ours, JPEG"]["resume_s"], "s", 1.0, at_most=True),
        claim(
            f"bytes of {ours} over those of ours, JPEG (what the speed costs)", bytes_more, "times", 10, at_most=True
        ),
    ]


def main() -> None:
    """Writes every side's files, lets the sides take turns, and prints and keeps the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--middle", action="store_true")
    arguments = parser.parse_args()
    if arguments.side:
        import torch

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        print(json.dumps(measure(arguments.side, arguments.folder, arguments.middle)))
        return
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        samples = make_samples(SAMPLES)
        folders = {side: Path(scratch) / str(number) for number, side in enumerate(SIDES)}
        for side, folder in folders.items():
            folder.mkdir()
            SIDES[side].write(samples, folder)
        passes: dict[str, list[Any]] = {side: [] for side in SIDES}
        middles: dict[str, list[Any]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side, folder in folders.items():
                passes[side].append(child(side, folder))
                middles[side].append(child(side, folder, "--middle"))
        rows = [row(side, folders[side], passes[side], middles[side]) for side in SIDES]
    for entry in rows:
        print(entry)
    write("loader", rows, claims(rows), PACKAGES)


if __name__ == "__main__":
    main()
