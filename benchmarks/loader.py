"""Our loader against webdataset, mosaicml-streaming, Hugging Face datasets and a loop over tensors in memory.

    pip install -c constraints.txt -e '.[bench]'
    pip install --no-deps --target .peers mosaicml-streaming brotli python-snappy cramjam zstd catalogue
    PYTHONPATH=.peers python -m benchmarks.loader

mosaicml-streaming goes into a separate folder because it requires an older transformers, which its loader does not use.
64x64 JPEGs, float16 embeddings of width 512 at their true length (lengths of web captions, cut at 64 tokens), batches
of 64, from the page cache. Every pass runs in its own process; the sides take turns, `ROUNDS` times, and medians are
reported. Ours reads in windows of 8 MB, several per epoch, and evicts them. The numbers are those of a second epoch;
the first, which also verifies page checksums, has its own column. Peers decode JPEG with their own decoder; "cv2" marks
those that use ours.

What is counted: CPU-seconds of the process that takes the batches, all its threads included, from the first batch of an
epoch to its last. Every side is the public loader that its documentation shows (`webdataset.WebLoader`,
`StreamingDataLoader`, `torch.utils.data.DataLoader`), without worker processes, so that all work is in that process;
ours is `train.loader.loader.Loader`, as a training rank uses it. Not counted: imports, which the processes inherit, and
opening the data; ``first_batch_s`` and ``resume_s`` have the latter in seconds. An epoch has 4,096 samples.

"before" is the loader of the commit `BEFORE`, which writes its own files and is measured by its own benchmark, in turns
with ours: what the later ways to feed a device cost a training on CPUs.

Besides, ours alone: one and two loading threads, batches as stored, from which the time that threads waited for a core
is taken out, beside one and two processes that only decode such JPEGs, which is what the machine gives; and captions of
T5-XXL's width, unpacked as on a CPU and as stored, as they are sent to a GPU.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.captions import make_captions, make_photo, sample_lengths
from benchmarks.earlier import extract_commit, run_script
from benchmarks.forked import measure_cpu_seconds, measure_peak_mb, run_forked
from benchmarks.loader_sides import (
    BATCH,
    PEERS,
    SIDES,
    SIZE,
    OursCrop,
    OursJpeg256,
    OursRawInt8,
    Sample,
    decode_with_opencv,
    import_peers,
)
from benchmarks.result import make_claim, write_result
from dataprep.images.pixel_encodings import jpeg_options
from dataprep.pack_config import PackConfig
from train.config import TrainConfig
from train.loader.feed import DeviceFeed
from train.loader.prefetch import prefetch_batches

SAMPLES, WIDTH, LONGEST, ROUNDS = 4096, 512, 64, 3
# Also measured with one and two prefetch threads, as in training.
THREADED: dict[str, Any] = {
    **{side: SIDES[side] for side in ("ours, JPEG", "ours, raw int8")},
    "ours, JPEG of 256 px": OursJpeg256,
    "ours, crops of 1024 px": OursCrop,
}
LARGE_SAMPLES, LARGE_IMAGES = 1024, 16  # of the last two: their samples, and distinct images among these
XXL_WIDTH, XXL_SAMPLES = 4096, 1024  # of T5-XXL
XXL = "ours, raw int8 at T5-XXL's width"
TOKENS_PER_WORD = 1.4
BEFORE = "16e0a72"  # before batches went to the device as stored
BEFORE_SIDES = ("ours, JPEG", "ours, raw float16", "ours, raw int8")
DECODE_SECONDS = 3.0
PACKAGES = ("pyarrow", "numpy", "torch", "webdataset", "datasets", "opencv-python-headless", "pillow")


def make_samples(count: int, width: int = WIDTH, size: int = SIZE, images: int | None = None) -> list[Sample]:
    """Returns the samples that all sides store; ``images``: how many distinct ones, None: all."""
    rng = np.random.default_rng(0)
    texts = make_captions(count, 5000, rng)
    tokens = np.clip(np.rint(sample_lengths(count, rng) * TOKENS_PER_WORD) + 1, 2, LONGEST).astype(int)
    # Channels differ in scale, as those of encoders do.
    scale_D = np.exp(rng.normal(-2, 0.5, width)).astype(np.float32)
    config = PackConfig(encoding="jpeg", jpeg_quality=90)
    jpegs = []
    for _ in range(images or count):
        done, jpeg = cv2.imencode(".jpg", make_photo(rng, size)[:, :, ::-1], jpeg_options(config, (size, size)))
        assert done
        jpegs.append(jpeg.tobytes())
    samples = []
    for index in range(count):
        text_LD = (rng.standard_normal((tokens[index], width), np.float32) * scale_D).astype(np.float16)
        samples.append(Sample(f"{index:09d}", texts[index], jpegs[index % len(jpegs)], text_LD))
    return samples


def measure_epochs(side: str, folder: Path) -> dict[str, float]:
    """Runs two epochs in this process: the first reads everything, the second is the steady state."""
    memory, began = measure_peak_mb(), time.monotonic()
    loader = SIDES[side](folder)
    first, seen, checksum, cpu = 0.0, 0, 0, []
    for _ in range(2):
        start, wall = measure_cpu_seconds(), time.monotonic()
        for images, text, mask in loader.epoch():
            first = first or time.monotonic() - began
            seen += len(images)
            checksum += int(images[0, 0, 0, 0]) + int(mask.sum())
            assert text.shape[:2] == mask.shape
        cpu.append(measure_cpu_seconds() - start)
    found = {"first_epoch_cpu_s": cpu[0], "cpu_s": cpu[1], "wall_s": time.monotonic() - wall}
    return found | {"first_batch_s": first, "grown_mb": measure_peak_mb() - memory, "seen": seen / 2}


def measure_resume(side: str, folder: Path) -> float:
    """Returns the seconds to create the loader and get the batch at the middle of an epoch, in this process."""
    began = time.monotonic()
    images, *_ = SIDES[side](folder).middle(SAMPLES // BATCH // 2)
    assert len(images) == BATCH
    return time.monotonic() - began


def measure_prefetch(side: str, folder: Path, workers: int) -> dict[str, float]:
    """Returns samples per second of later epochs with ``workers`` threads that load for a GPU, in this process.

    ``own``: without the time that the threads waited for a core, so that it says something on a busy machine; it is a
    lower bound there, since a thread that waits for a core may hold what another one waits for.
    """
    loader = THREADED[side](folder).loader
    steps = len(loader) // BATCH
    config, feed = TrainConfig(steps=3 * steps, batch_size=BATCH, workers=workers), DeviceFeed(torch.device("meta"), 0)
    with prefetch_batches(loader, config, 0, 0, 1, feed) as ready:
        for _ in islice(ready, steps):
            pass
        began, queued, taken = time.monotonic(), read_queueing(), 2 * steps - workers - 4  # all threads have work
        for batch, _ in islice(ready, taken):
            assert len(batch["key"]) == BATCH
        seconds = time.monotonic() - began
        waited = (read_queueing() - queued) / workers
    return {"wall": taken * BATCH / seconds, "own": taken * BATCH / (seconds - waited)}


def read_queueing() -> float:
    """Returns the seconds that this process's loading threads have waited for a core, all together (Linux)."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    return sum(read_schedule(f"/proc/self/task/{thread.native_id}/schedstat") for thread in threads)


def read_schedule(file: str) -> float:
    """Returns the seconds that a thread or a process has waited for a core (Linux)."""
    return int(Path(file).read_text().split()[1]) / 1e9


def measure_batches(folder: Path, unpacked: bool) -> float:
    """Returns CPU-seconds per thousand samples of a second epoch of raw pixels and int8 captions, in this process.

    ``unpacked``: padded float32, else as stored, as they are sent to a GPU.
    """
    loader = OursRawInt8(folder).loader
    steps = len(loader) // BATCH
    load = loader.batch if unpacked else loader.stored_batch
    for step in range(steps):
        load(step)
    start = measure_cpu_seconds()
    for step in range(steps, 2 * steps):
        load(step)
    return 1000 * (measure_cpu_seconds() - start) / (steps * BATCH)


def measure_decoding(size: int, processes: int) -> float:
    """Returns how many JPEGs of ``size`` pixels a side so many processes decode per second, all together."""
    jpegs = [sample.jpeg for sample in make_samples(LARGE_IMAGES, 1, size)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return sum(pool.map(decode_all, [jpegs] * processes, chunksize=1))


def decode_all(jpegs: list[bytes]) -> float:
    """Returns how many of the JPEGs this process decodes per second, without the time that it waits for a core."""
    count, began, queued = 0, time.monotonic(), read_schedule("/proc/self/schedstat")
    while time.monotonic() - began < DECODE_SECONDS:
        for jpeg in jpegs:
            decode_with_opencv(jpeg)
        count += len(jpegs)
    return count / (time.monotonic() - began - read_schedule("/proc/self/schedstat") + queued)


def summarize_side(side: str, folder: Path, passes: list[dict[str, float]], middles: list[float]) -> dict[str, Any]:
    """Returns the row of a side: medians over the rounds."""
    seen = passes[0]["seen"]
    assert all(one["seen"] == seen for one in passes) and seen >= SAMPLES - BATCH, passes
    middle = {name: median(one[name] for one in passes) for name in passes[0]}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "side": side,
        "samples_per_second": round(seen / middle["wall_s"]),
        "samples_per_cpu_second": round(seen / middle["cpu_s"]),
        "samples_per_cpu_second_first_epoch": round(seen / middle["first_epoch_cpu_s"]),
        "cpu_s_per_thousand": round(1000 * middle["cpu_s"] / seen, 4),
        "grown_mb": round(middle["grown_mb"]),
        "first_batch_s": round(middle["first_batch_s"], 3),
        "resume_s": round(median(middles), 3),
        "bytes_per_sample": round(size / SAMPLES),
    }


def make_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the claims about the rows."""
    sides = {entry["side"]: entry for entry in rows if "cpu_s_per_thousand" in entry and "width" not in entry}
    before = {entry["side"]: entry["samples_per_cpu_second"] for entry in rows if "commit" in entry}
    decoded = {(row["size"], row["processes"]): row["decoded_per_second"] for row in rows if "processes" in row}
    ceilings = {
        side: f" ({decoded[size, 2] / decoded[size, 1]:.2f} of two processes that only decode)"
        for side, size in (("ours, JPEG", SIZE), ("ours, JPEG of 256 px", OursJpeg256.size))
    }
    wide = {entry["captions"]: entry["cpu_s_per_thousand"] for entry in rows if entry.get("width") == XXL_WIDTH}
    one, two = (
        {entry["side"]: entry["samples_per_second_without_queueing"] for entry in rows if entry.get("threads") == count}
        for count in (1, 2)
    )
    rate = {side: entry["samples_per_cpu_second"] for side, entry in sides.items()}
    fastest = max((side for side in PEERS if "cv2" not in side), key=lambda side: rate[side])
    helped = max((side for side in PEERS if "cv2" in side), key=lambda side: rate[side])
    best = max(("ours, raw float16", "ours, raw int8"), key=lambda side: rate[side])
    ours, size = rate["ours, JPEG"], sides["ours, JPEG"]["bytes_per_sample"]
    return [
        make_claim(
            f"same JPEG bytes, samples per CPU-second over the fastest peer ({fastest})",
            ours / rate[fastest],
            "times",
            1.5,
        ),
        make_claim(f"the same over the fastest peer with our decoder ({helped})", ours / rate[helped], "times", 1.0),
        make_claim(f"{best} over the fastest peer ({fastest})", rate[best] / rate[fastest], "times", 3.0),
        make_claim(f"{best} over tensors in memory", rate[best] / rate["memory"], "times", 0.7),
        *[
            make_claim(f"{side}, over the loader before", rate[side] / value, "times", 1.0)
            for side, value in before.items()
        ],
        *[
            make_claim(
                f"two threads over one, {side.removeprefix('ours, ')}{ceilings.get(side, '')}",
                two[side] / one[side],
                "times",
                1.0 if "raw" in side else 1.6,
            )
            for side in THREADED
        ],
        make_claim(
            "CPU per sample at T5-XXL's width, captions as stored over unpacked",
            wide["as stored"] / wide["unpacked"],
            "times",
            0.25,
            at_most=True,
        ),
        make_claim("seek to the middle of an epoch, JPEG", sides["ours, JPEG"]["resume_s"], "s", 1.0, at_most=True),
        make_claim(
            f"bytes per sample of {best} over JPEG", sides[best]["bytes_per_sample"] / size, "times", 2.0, at_most=True
        ),
    ]


def write_more(side: str, folder: Path) -> None:
    """Writes the files of the sides that peers are not compared with."""
    if side == XXL:
        OursRawInt8.write(make_samples(XXL_SAMPLES, XXL_WIDTH), folder)
        return
    kind = THREADED[side]
    kind.write(make_samples(LARGE_SAMPLES, WIDTH, kind.size, LARGE_IMAGES), folder)


class Measured:
    """What the sides measured, a value per round."""

    def __init__(self) -> None:
        self.passes: dict[str, list[Any]] = {side: [] for side in SIDES}
        self.middles: dict[str, list[float]] = {side: [] for side in SIDES}
        self.before: dict[str, list[Any]] = {side: [] for side in BEFORE_SIDES}
        self.threads: dict[tuple[str, int], list[dict[str, float]]] = {
            (side, count): [] for side in THREADED for count in (1, 2)
        }
        self.decoding: dict[tuple[int, int], list[float]] = {
            (size, count): [] for size in (SIZE, OursJpeg256.size) for count in (1, 2)
        }
        self.text: dict[tuple[int, bool], list[float]] = {
            (width, unpacked): [] for width in (WIDTH, XXL_WIDTH) for unpacked in (True, False)
        }

    def measure_round(self, folders: dict[str, Path], before: Path) -> None:
        """Measures each side once; ``before``: the tree of `BEFORE`, with its files in folders beside it."""
        for (side, count), rates in self.threads.items():
            rates.append(run_forked(measure_prefetch, side, folders[side], count))
        for (size, count), decoded in self.decoding.items():
            decoded.append(run_forked(measure_decoding, size, count))
        for (width, unpacked), spent in self.text.items():
            folder = folders[XXL if width == XXL_WIDTH else "ours, raw int8"]
            spent.append(run_forked(measure_batches, folder, unpacked))
        for side in SIDES:
            self.passes[side].append(run_forked(measure_epochs, side, folders[side]))
            self.middles[side].append(run_forked(measure_resume, side, folders[side]))
            if side in BEFORE_SIDES:
                files = str(folders[f"before, {side}"])
                self.before[side].append(run_script(before, "loader_before.py", "measure", side, files))

    def make_rows(self, folders: dict[str, Path]) -> list[dict[str, Any]]:
        """Returns the rows of all sides: medians over the rounds."""
        rows = [summarize_side(side, folders[side], self.passes[side], self.middles[side]) for side in SIDES]
        for side, passes in self.before.items():
            rate = passes[0]["seen"] / median(one["cpu_s"] for one in passes)
            rows.append({"side": side, "commit": BEFORE, "samples_per_cpu_second": round(rate)})
        for (side, count), rates in self.threads.items():
            wall, own = (round(median(one[name] for one in rates)) for name in ("wall", "own"))
            rows.append(
                {
                    "side": side,
                    "threads": count,
                    "samples_per_second": wall,
                    "samples_per_second_without_queueing": own,
                }
            )
        for (size, count), decoded in self.decoding.items():
            rows.append({"size": size, "processes": count, "decoded_per_second": round(median(decoded))})
        for (width, unpacked), spent in self.text.items():
            row = {"side": "ours, raw int8", "width": width, "captions": "unpacked" if unpacked else "as stored"}
            rows.append(row | {"cpu_s_per_thousand": round(median(spent), 4)})
        return rows


def write_all(scratch: Path) -> dict[str, Path]:
    """Writes every side's files below ``scratch``; returns their folders."""
    samples = make_samples(SAMPLES)
    folders = {side: scratch / str(number) for number, side in enumerate(SIDES)}
    for side, folder in folders.items():
        folder.mkdir()
        run_forked(SIDES[side].write, samples, folder)
    for number, side in enumerate((*[side for side in THREADED if side not in SIDES], XXL)):
        folders[side] = scratch / f"more-{number}"
        folders[side].mkdir()
        run_forked(write_more, side, folders[side])
    return folders


def main() -> None:
    """Writes every side's files, runs the sides in turns, prints and writes the result."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    import_peers()
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        folders = write_all(Path(scratch))
        (tree := Path(scratch) / "before").mkdir()
        extract_commit(BEFORE, tree)
        for number, side in enumerate(BEFORE_SIDES):
            folders[f"before, {side}"] = Path(scratch) / f"before-{number}"
            run_script(tree, "loader_before.py", "write", side, str(folders[f"before, {side}"]))
        measured = Measured()
        for _ in range(ROUNDS):
            measured.measure_round(folders, tree)
        rows = measured.make_rows(folders)
    for entry in rows:
        print(entry)
    write_result("loader", rows, make_claims(rows), PACKAGES)


if __name__ == "__main__":
    main()
