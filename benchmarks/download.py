"""Download speed of imagen-ray and img2dataset: the same list, settings and loopback server.

    python -m benchmarks.download [--rows 2000] [--rounds 3]

The list: 85% JPEG, 10% PNG, 5% WebP, sizes of photographs (shorter side log-normal around 420 pixels, as in large web
lists: 36% at 512 or more, 5% at 1024 or more), 3% dead links, 1% truncated files. One process per side, 64 concurrent
requests, 256 pixels for the shorter side, JPEG quality 95, tar shards of 1000, sha256, no retries, no EXIF; img2dataset
with its multiprocessing distributor, ours with robots.txt, TDM and the address guard enabled. The server runs in its
own process, which is not counted. CPU-seconds are those of the process tree. ``starting`` is the time before the first
request, mostly imports; the first claim subtracts it, which favours img2dataset.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop
from PIL import Image

from benchmarks.result import make_claim, write_result

FILES, ROWS_PER_SHARD, CONCURRENCY, SIZE, QUALITY, TIMEOUT = 400, 1000, 64, 256, 95, 10
HOST = "bench.test"
SIDES = ("img2dataset", "imagen-ray")


# ---------------------------------------------------------------------------------------------- server


def make_photo(index: int) -> bytes | None:
    """Returns file ``index``: smooth colours with grain, which compress like a photograph; None for a dead link."""
    rng = np.random.default_rng(index)
    kind, quality = rng.choice(["JPEG", "PNG", "WEBP"], p=(0.85, 0.10, 0.05)), int(rng.integers(75, 93))
    short = float(np.clip(rng.lognormal(np.log(420), 0.55), 100, 2400))
    size = (round(short * rng.uniform(1, 1.6)), round(short))
    size = size if rng.random() < 0.65 else size[::-1]
    coarse = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    image = np.clip(smooth + rng.integers(-9, 10, smooth.shape, np.int16), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({} if kind == "PNG" else {"quality": quality}))
    failure, data = rng.random(), buffer.getvalue()
    return None if failure < 0.03 else data[: len(data) // 2] if failure < 0.04 else data


class Server(asyncio.Protocol):
    """Answers GET /{number} from memory; keeps connections alive if the client does."""

    answers: list[bytes] = []  # noqa: RUF012 - shared by all connections
    first = 0.0  # time of the first request for a file, on the monotonic clock that all processes share

    def connection_made(self, transport: Any) -> None:
        """Accepts a connection."""
        self.transport, self.head = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answers the requests that are complete."""
        self.head += data
        while b"\r\n\r\n" in self.head:
            request, _, self.head = self.head.partition(b"\r\n\r\n")
            name = request.split(b" ", 2)[1][1:]
            if name == b"first":  # from the benchmark itself: returns the time and resets it
                first, Server.first = str(Server.first).encode(), 0.0
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(first), first))
                continue
            Server.first = Server.first or time.monotonic()
            missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(self.answers[int(name) % FILES] if name.isdigit() else missing)
            if b"connection: close" in request.lower():
                self.transport.close()


def run_server() -> None:
    """Prints the port and serves until the process is terminated."""
    for index in range(FILES):
        data = make_photo(index)
        status = b"404 Not Found" if data is None else b"200 OK"
        length = str(len(data or b"")).encode()
        Server.answers.append(b"HTTP/1.1 %s\r\nContent-Length: %s\r\n\r\n%s" % (status, length, data or b""))

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=512)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def start_server() -> Iterator[int]:
    """Starts the server in its own process; yields its port."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.download", "--serve"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


# ---------------------------------------------------------------------------------------------- sides


def run_img2dataset(port: int, rows: int, folder: Path) -> dict[str, Any]:
    """Downloads with img2dataset, called as in its README."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset import download

    table = pa.table({"url": [f"http://127.0.0.1:{port}/{i}" for i in range(rows)], "caption": ["an image"] * rows})
    pq.write_table(table, folder / "list.parquet")
    download(
        url_list=str(folder / "list.parquet"),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(folder / "out"),
        output_format="webdataset",
        processes_count=1,
        thread_count=CONCURRENCY,
        image_size=SIZE,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=QUALITY,
        number_sample_per_shard=ROWS_PER_SHARD,
        timeout=TIMEOUT,
        retries=0,
        extract_exif=False,
        enable_wandb=False,
    )
    counts = [json.loads(path.read_text()) for path in (folder / "out").glob("*_stats.json")]
    return {"images": sum(count["successes"] for count in counts)}


def run_imagen_ray(port: int, rows: int, folder: Path, shares: bool = False) -> dict[str, Any]:
    """Downloads with the code of the download stage, one shard after another.

    With ``shares``, also returns the share of CPU time of each part of the work.
    """
    from dataprep.download.config import DownloadConfig, FetchConfig
    from dataprep.download.shard import download_shard
    from dataprep.io.parquet import write_table

    clock = time_parts() if shares else {}
    fetch = FetchConfig(timeout=float(TIMEOUT), retries=0, concurrency=CONCURRENCY)
    config = DownloadConfig(fetch=fetch, image_size=SIZE, resize_mode="keep_ratio", encode_quality=QUALITY)
    images, started = 0, time.process_time()
    for shard, start in enumerate(range(0, rows, ROWS_PER_SHARD)):
        urls = [f"http://{HOST}/{i}" for i in range(start, min(start + ROWS_PER_SHARD, rows))]
        table = pa.table({"url": urls, "caption": ["an image"] * len(urls)})
        write_table(table, folder / "list.parquet", "listing")
        hosts = {HOST: ("127.0.0.1", port)}
        images += download_shard(folder / "list.parquet", shard, folder, config, hosts)["success"]
    whole = time.process_time() - started
    found = {name: seconds / whole for name, seconds in clock.items()}
    if shares:
        found["fetch and everything else"] = 1 - sum(found.values())
    return {"images": images, "shares": {name: round(share, 3) for name, share in found.items()}}


def time_parts() -> dict[str, float]:
    """Patches the parts of the work to add up their CPU-seconds (of the calling thread) in the returned dict."""
    from dataprep.download import shard
    from dataprep.images import decode, store

    clock: dict[str, float] = {}
    lock = threading.Lock()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                with lock:
                    clock[name] = clock.get(name, 0.0) + time.thread_time() - start

        return call

    def patch(owner: Any, attribute: str, name: str) -> None:
        function = getattr(owner, attribute)  # AttributeError if it was renamed
        setattr(owner, attribute, timed(name, function))

    patch(decode.OpenImage, "__init__", "decode")
    patch(decode.OpenImage, "decode", "decode")
    patch(store, "scale_image", "resize")
    patch(store, "encode_image", "encode")
    patch(shard, "_write_tar", "write")
    patch(shard, "write_table", "write")
    return clock


def measure_side(side: str, port: int, rows: int, *flags: str) -> dict[str, Any]:
    """Runs one side in its own process; returns images, seconds, CPU-seconds and peak memory of its process tree."""
    with tempfile.TemporaryDirectory(prefix="download-bench-") as folder:
        words = [sys.executable, "-m", "benchmarks.download", "--side", side, "--port", str(port), "--rows", str(rows)]
        start = time.monotonic()
        process = subprocess.Popen(
            [*words, "--folder", folder, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        seen: list[tuple[float, float, int]] = []
        stop = threading.Event()
        watcher = threading.Thread(target=watch_processes, args=(process.pid, seen, stop))
        watcher.start()
        assert process.stdout is not None
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        end = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        stop.set()
        watcher.join()
        assert process.returncode == 0, f"{side} failed: {output}"
    with urlopen(f"http://127.0.0.1:{port}/first") as answer:
        first = float(answer.read())
    return json.loads(output.strip().splitlines()[-1]) | {
        "side": side,
        "rows": rows,
        "seconds": round(end - start, 3),
        "starting_seconds": round(first - start, 3),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "starting_cpu_seconds": round(max(cpu for moment, cpu, _ in seen if moment <= first), 3),
        "peak_mib": round(max(held for _, _, held in seen) / 2**20, 1),
    }


def watch_processes(pid: int, seen: list[tuple[float, float, int]], stop: threading.Event) -> None:
    """Appends (time, CPU-seconds, bytes of memory) of a process tree; shared pages count in each process."""
    while not stop.wait(0.05):
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            cpu = sum(sum(process.cpu_times()[:4]) for process in tree)  # including children that ended
            seen.append((time.monotonic(), cpu, sum(process.memory_info().rss for process in tree)))
        except psutil.Error:
            continue


# ---------------------------------------------------------------------------------------------- comparison


def main() -> None:
    """Parses the command line and runs the comparison, a side or the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--port", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shares", action="store_true")
    options = parser.parse_args()
    if options.serve:
        run_server()
    elif options.side == "img2dataset":
        print(json.dumps(run_img2dataset(options.port, options.rows, options.folder)))
    elif options.side:
        print(json.dumps(run_imagen_ray(options.port, options.rows, options.folder, options.shares)))
    else:
        compare_sides(options.rows, options.rounds)


def compare_sides(count: int, rounds: int) -> None:
    """Runs both sides in turn, ``rounds`` times; writes the result with claims about the medians."""
    rows: list[dict[str, Any]] = []
    with start_server() as port:
        for turn in range(rounds):
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                rows.append({"round": turn} | measure_side(side, port, count))
                print(rows[-1], flush=True)
        shares = {"round": None} | measure_side("imagen-ray", port, count, "--shares")  # separate: timing costs CPU
        print(shares, flush=True)
    claims = []
    for text, key, starting in (
        ("images per CPU-second, without starting", "cpu_seconds", 0),
        ("images per CPU-second, with starting", "cpu_seconds", 1),
        ("images per second in one process, without starting", "seconds", 0),
    ):
        theirs, ours = (
            median(
                row["images"] / (row[key] - (0 if starting else row[f"starting_{key}"]))
                for row in rows
                if row["side"] == side
            )
            for side in SIDES
        )
        claims.append(make_claim(f"{text}: {ours:.0f} against img2dataset's {theirs:.0f}", ours / theirs, "x", 1.5))
    memory = [median(row["peak_mib"] for row in rows if row["side"] == side) for side in SIDES]
    claims.append(make_claim("peak memory over img2dataset's", memory[1] / memory[0], "x", 1.0, at_most=True))
    packages = ("img2dataset", "opencv-python-headless", "simplejpeg", "pillow", "aiohttp", "uvloop")
    write_result("download", [*rows, shares], claims, packages)


if __name__ == "__main__":
    main()
