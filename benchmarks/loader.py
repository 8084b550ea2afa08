"""Our loader beside webdataset, mosaicml-streaming and Hugging Face datasets, and a loop over tensors in memory.

    pip install -c constraints.txt -e '.[bench]'
    pip install --no-deps --target .peers mosaicml-streaming brotli python-snappy cramjam zstd catalogue
    PYTHONPATH=.peers python -m benchmarks.loader

mosaicml-streaming is put in a folder of its own since it asks for an older transformers, which its loader does not use.
64x64 JPEGs, float16 embeddings 512 wide at their true length (web-like caption lengths, cut at 64 tokens), batches of
64, on a local disk that has them in its page cache. Every pass has a process of its own; the sides take turns,
`ROUNDS` times, and medians are kept. Ours reads in windows of 8 MB, several an epoch, and lets them go. The figures are
those of a second epoch; the first, in which page checksums are verified too, has a column of its own. Peers decode JPEG
by themselves; "cv2" marks those that were given our decoder.
"""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.apart import apart, cpu_seconds, peak_mb
from benchmarks.captions import captions, lengths, photo
from benchmarks.loader_sides import BATCH, PEERS, SIDES, SIZE, Sample, import_peers
from benchmarks.result import claim, write
from train.config import TrainConfig
from train.prefetch import batches

SAMPLES, WIDTH, LONGEST, ROUNDS = 4096, 512, 64, 3
THREADED = ("ours, JPEG", "ours, raw int8")  # also with one and two threads that prepare batches, as training has them
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


def measure(side: str, folder: Path) -> dict[str, float]:
    """Two epochs in this process: the first has everything to read, the second is how it goes on."""
    memory, began = peak_mb(), time.monotonic()
    loader = SIDES[side](folder)
    first, seen, checksum, cpu = 0.0, 0, 0, []
    for _ in range(2):
        start, wall = cpu_seconds(), time.monotonic()
        for images, text, mask in loader.epoch():
            first = first or time.monotonic() - began
            seen += len(images)
            checksum += int(images[0, 0, 0, 0]) + int(mask.sum())
            assert text.shape[:2] == mask.shape
        cpu.append(cpu_seconds() - start)
    found = {"first_epoch_cpu_s": cpu[0], "cpu_s": cpu[1], "wall_s": time.monotonic() - wall}
    return found | {"first_batch_s": first, "grown_mb": peak_mb() - memory, "seen": seen / 2}


def resume(side: str, folder: Path) -> float:
    """Seconds from nothing to the batch at the middle of an epoch, in this process."""
    began = time.monotonic()
    images, *_ = SIDES[side](folder).middle(SAMPLES // BATCH // 2)
    assert len(images) == BATCH
    return time.monotonic() - began


def threaded(side: str, folder: Path, workers: int) -> float:
    """Batches a second of wall time of a second epoch, prepared by so many threads, in this process."""
    loader = SIDES[side](folder).loader
    steps = len(loader) // BATCH
    with batches(loader, TrainConfig(steps=2 * steps, batch_size=BATCH, workers=workers), 0, 0, 1) as ready:
        for _ in islice(ready, steps):
            pass
        began = time.monotonic()
        for batch in ready:
            assert len(batch["key"]) == BATCH
    return steps / (time.monotonic() - began)


def row(side: str, folder: Path, passes: list[dict[str, float]], middles: list[float]) -> dict[str, Any]:
    """The medians of a side."""
    seen = passes[0]["seen"]
    assert all(one["seen"] == seen for one in passes) and seen >= SAMPLES - BATCH, passes
    middle = {name: median(one[name] for one in passes) for name in passes[0]}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "side": side,
        "samples_a_second": round(seen / middle["wall_s"]),
        "samples_a_cpu_second": round(seen / middle["cpu_s"]),
        "samples_a_cpu_second_first_epoch": round(seen / middle["first_epoch_cpu_s"]),
        "cpu_s_a_thousand": round(1000 * middle["cpu_s"] / seen, 4),
        "grown_mb": round(middle["grown_mb"]),
        "first_batch_s": round(middle["first_batch_s"], 3),
        "resume_s": round(median(middles), 3),
        "bytes_a_sample": round(size / SAMPLES),
    }


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is said of the table."""
    found = {entry["side"]: entry for entry in rows if "threads" not in entry}
    one, two = (
        {entry["side"]: entry["samples_a_second"] for entry in rows if entry.get("threads") == count}
        for count in (1, 2)
    )
    rate = {side: entry["samples_a_cpu_second"] for side, entry in found.items()}
    fastest = max((side for side in PEERS if "cv2" not in side), key=lambda side: rate[side])
    helped = max((side for side in PEERS if "cv2" in side), key=lambda side: rate[side])
    best = max(("ours, raw float16", "ours, raw int8"), key=lambda side: rate[side])
    ours, size = rate["ours, JPEG"], found["ours, JPEG"]["bytes_a_sample"]
    return [
        claim(
            f"same JPEG bytes, samples a CPU-s over the fastest peer ({fastest})",
            ours / rate[fastest],
            "times",
            1.5,
        ),
        claim(f"the same over a peer that was given our decoder ({helped})", ours / rate[helped], "times", 1.0),
        claim(f"{best} over the fastest peer ({fastest})", rate[best] / rate[fastest], "times", 3.0),
        claim(f"{best} over tensors in memory", rate[best] / rate["memory"], "times", 0.7),
        claim("two threads over one, JPEG, samples a second", two["ours, JPEG"] / one["ours, JPEG"], "times", 1.5),
        claim("two threads over one, raw int8", two["ours, raw int8"] / one["ours, raw int8"], "times", 1.0),
        claim("seek to the middle of an epoch, JPEG", found["ours, JPEG"]["resume_s"], "s", 1.0, at_most=True),
        claim(f"bytes that {best} costs beside JPEG", found[best]["bytes_a_sample"] / size, "times", 2.0, at_most=True),
    ]


def main() -> None:
    """Writes every side's files, lets the sides take turns, and prints and keeps the result."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    import_peers()
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        samples = make_samples(SAMPLES)
        folders = {side: Path(scratch) / str(number) for number, side in enumerate(SIDES)}
        for side, folder in folders.items():
            folder.mkdir()
            apart(SIDES[side].write, samples, folder)
        del samples
        passes: dict[str, list[Any]] = {side: [] for side in SIDES}
        middles: dict[str, list[float]] = {side: [] for side in SIDES}
        rates: dict[tuple[str, int], list[float]] = {(side, count): [] for side in THREADED for count in (1, 2)}
        for _ in range(ROUNDS):
            for (side, count), measured in rates.items():
                measured.append(apart(threaded, side, folders[side], count))
            for side, folder in folders.items():
                passes[side].append(apart(measure, side, folder))
                middles[side].append(apart(resume, side, folder))
        rows = [row(side, folders[side], passes[side], middles[side]) for side in SIDES]
        rows += [
            {"side": side, "threads": count, "samples_a_second": round(BATCH * median(measured))}
            for (side, count), measured in rates.items()
        ]
    for entry in rows:
        print(entry)
    write("loader", rows, claims(rows), PACKAGES)


if __name__ == "__main__":
    main()
