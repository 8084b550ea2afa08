"""Download of the same list by `img2dataset` and by `imagen-ray run`: whole commands, as users type them.

    python -m benchmarks.download [--rows 1000 4000 20000] [--kinds small web] [--processes 1 2] [--rounds 3]

The commands, P being the number of processes:

    img2dataset --url_list list.parquet --input_format parquet --url_col url --caption_col caption
        --output_format webdataset --output_folder out --image_size 256 --resize_mode keep_ratio
        --resize_only_if_bigger True --encode_quality 95 --number_sample_per_shard 500 --thread_count 64
        --processes_count P --extract_exif False --enable_wandb False
    imagen-ray run configs/your_urls.yaml run=out listing.path=list.parquet listing.rows_per_shard=500
        cluster.cpus=P --until download

Both store JPEGs of quality 95 with a shorter side of 256 pixels, their sha256, and tars of 500. What is not set is each
side's default; ours includes robots.txt, TDM reservations and the address guard (for a list that may name private
hosts). img2dataset is spared the EXIF tables, which ours does not write.

What is counted: seconds from the start of the command to its end; CPU-seconds and memory of all processes of the
command (`benchmarks.process_tree`), Ray's included, until the last has ended; not the server's. So start-up counts.
Two sizes separate it: a straight line through the medians of the smallest and the largest size gives a slope (per
image) and a start (the rest). Sides take turns, each round in the other order.

The server is nginx with one worker, where it is installed, else `benchmarks.image_server`, which describes the kinds
"small" and "web". It has 400 files, and each URL another query. Both sides must store the same number of images, or the
benchmark fails.

The result is written where the sizes of the claims were measured, that is, 4000 and 20000 small ones by 2 processes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.image_server import Kind, start_server
from benchmarks.process_tree import run_measured
from benchmarks.result import make_claim, write_result

ROOT = Path(__file__).parents[1]
FILES, ROWS_PER_SHARD, CONCURRENCY, SIZE, QUALITY = 400, 500, 64, 256, 95
SIDES = ("img2dataset", "imagen-ray")
CLAIMED = {4000: 1.5, 20_000: 2.0}  # images by 2 processes, small ones: how many times quicker
PROCESSES, SLOPE = 2, 2.0
COSTS = {"seconds": "wall seconds", "cpu_seconds": "CPU-seconds"}


# ---------------------------------------------------------------------------------------------- sides


def make_command(side: str, processes: int, folder: Path) -> list[str]:
    """Returns the words of the command that downloads ``folder``/list.parquet to ``folder``/out."""
    if side == "imagen-ray":
        words = [f"{ROOT}/configs/your_urls.yaml", f"run={folder}/out", f"listing.path={folder}/list.parquet"]
        words += [f"listing.rows_per_shard={ROWS_PER_SHARD}", f"cluster.cpus={processes}", "--until", "download"]
        return [sys.executable, "-m", "pipeline", "run", *words]
    options = {
        "url_list": folder / "list.parquet",
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": folder / "out",
        "image_size": SIZE,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "encode_quality": QUALITY,
        "number_sample_per_shard": ROWS_PER_SHARD,
        "thread_count": CONCURRENCY,
        "processes_count": processes,
        "extract_exif": False,
        "enable_wandb": False,
    }
    command = shutil.which("img2dataset", path=str(Path(sys.executable).parent))
    assert command is not None, "img2dataset is not installed"
    return [command, *(f"--{name}={value}" for name, value in options.items())]


def count_stored(folder: Path) -> int:
    """Counts the images in the tars below ``folder``, by their Parquet files."""
    files = [file for file in folder.rglob("*.parquet") if file.with_suffix(".tar").exists()]
    return sum(pq.read_table(file, columns=["status"])["status"].to_pylist().count("success") for file in files)


def measure_side(side: str, kind: str, processes: int, rows: int, port: int) -> dict[str, Any]:
    """Runs the command of one side and returns what it took."""
    with tempfile.TemporaryDirectory(prefix="download-bench-") as name:
        folder = Path(name)
        urls = [f"http://127.0.0.1:{port}/{kind}/{index % FILES}?{index}" for index in range(rows)]
        pq.write_table(pa.table({"url": urls, "caption": ["an image"] * rows}), folder / "list.parquet")
        env = os.environ | {"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
        done = run_measured(make_command(side, processes, folder), folder, env)
        assert done.returncode == 0, f"{side} failed: {done.output[-2000:]}"
        images = count_stored(folder / "out")
    return {
        "side": side,
        "kind": kind,
        "processes": processes,
        "rows": rows,
        "images": images,
        "seconds": round(done.seconds, 2),
        "cpu_seconds": round(done.cpu_seconds, 2),
        "peak_mib": round(done.peak_mib, 1),
        "counted_by": done.counted_by,
    }


# ---------------------------------------------------------------------------------------------- comparison


def take_median(measured: list[dict[str, Any]], key: str, **where: Any) -> float:
    """Returns the median of ``key`` over the rows with these values."""
    return median(row[key] for row in measured if {**row, **where} == row)


def fit_lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns start and slope of each side, kind and number of processes that has two sizes."""
    lines = []
    for side, kind, processes in dict.fromkeys((row["side"], row["kind"], row["processes"]) for row in rows):
        where = {"side": side, "kind": kind, "processes": processes}
        sizes = sorted({row["rows"] for row in rows if {**row, **where} == row})
        if len(sizes) < 2:
            continue
        line: dict[str, Any] = {"line": f"{sizes[0]} to {sizes[-1]} images", **where}
        for key in COSTS:
            low, high = (take_median(rows, key, rows=size, **where) for size in (sizes[0], sizes[-1]))
            slope = (high - low) / (sizes[-1] - sizes[0])
            line |= {f"milli{key}_per_image": round(slope * 1000, 3), f"start_{key}": round(low - slope * sizes[0], 2)}
        lines.append(line)
    return lines


def make_claims(rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the claims about small images by 2 processes that the rows cover."""
    claims = []
    where = {"kind": "small", "processes": PROCESSES}
    for size, target in CLAIMED.items():
        if not any({**row, **where, "rows": size} == row for row in rows):
            continue
        for key, unit in COSTS.items():
            theirs, ours = (take_median(rows, key, side=side, rows=size, **where) for side in SIDES)
            text = f"{unit} of the whole command, {size:,} images of 512x384, {PROCESSES} processes"
            claims.append(
                make_claim(f"{text}: {ours:.1f} against img2dataset's {theirs:.1f}", theirs / ours, "x", target)
            )
        memory = [take_median(rows, "peak_mib", side=side, rows=size, **where) for side in SIDES]
        text = f"peak memory at {size:,} images over img2dataset's: {memory[1]:.0f} against {memory[0]:.0f} MiB"
        claims.append(make_claim(text, memory[1] / memory[0], "x", 1.0, at_most=True))
    found = {line["side"]: line for line in lines if {**line, **where} == line}
    for key, unit in COSTS.items() if len(found) == len(SIDES) else ():
        theirs, ours = (found[side][f"milli{key}_per_image"] for side in SIDES)
        text = f"thousandths of {unit} per further image: {ours:.2f} against img2dataset's {theirs:.2f}"
        claims.append(make_claim(text, theirs / ours, "x", SLOPE))
    return claims


def compare_sides(options: argparse.Namespace) -> None:
    """Runs both sides in turn, ``rounds`` times; prints all, and writes the result if it covers the claims."""
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="download-bench-server-") as name,
        start_server(Path(name), options.kinds, FILES) as (server, port),
    ):
        for turn in range(options.rounds):
            for kind, processes, size in (
                (k, p, s) for k in options.kinds for p in options.processes for s in sorted(options.rows)
            ):
                pair = []
                for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                    pair.append({"round": turn} | measure_side(side, kind, processes, size, port))
                    print(pair[-1], flush=True)
                assert pair[0]["images"] == pair[1]["images"], "the sides do not store the same images"
                rows += pair
    lines = fit_lines(rows)
    for line in lines:
        print(line)
    claims = make_claims(rows, lines)
    packages = ("img2dataset", "opencv-python-headless", "simplejpeg", "pillow", "aiohttp", "uvloop", "ray")
    if len(claims) == 3 * len(CLAIMED) + len(COSTS):
        write_result("download", [*rows, *lines], claims, packages, server=server)
    else:
        print("not written: the claims need 4000 and 20000 small images by 2 processes;", *claims, sep="\n")


def main() -> None:
    """Parses the command line and runs the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000, 20_000])
    parser.add_argument("--kinds", nargs="+", choices=get_args(Kind), default=["small", "web"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    compare_sides(parser.parse_args())


if __name__ == "__main__":
    main()
