"""Image files for benchmarks and a server of them on loopback: as fast as it can, or at a limited rate.

    python -m benchmarks.image_server FOLDER PORT [--rate IMAGES_PER_SECOND]

serves FOLDER/{kind}/{number} until it is terminated. Benchmarks start it by `start_server`, which makes the files.
"small": JPEGs of 512x384, quality 85. "web": 85% JPEG, 10% PNG, 5% WebP with sizes of photographs in large web lists
(shorter side log-normal around 420 pixels: 36% at 512 or more, 5% at 1024 or more), 3% dead links, 1% truncated files.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import uvloop
from PIL import Image

ROOT = Path(__file__).parents[1]
HOST, BACKLOG = "127.0.0.1", 1024
STARTING = 120.0  # seconds that the server may take until it answers
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen {host}:{port} backlog={backlog}; root {folder}; }}
}}
"""
Kind = Literal["small", "web"]


def make_photo(kind: Kind, index: int) -> bytes | None:
    """Returns file ``index``: smooth colours with grain, which compress like a photograph; None for a dead link."""
    rng = np.random.default_rng(index)
    form, quality = rng.choice(["JPEG", "PNG", "WEBP"], p=(0.85, 0.10, 0.05)), int(rng.integers(75, 93))
    short = float(np.clip(rng.lognormal(np.log(420), 0.55), 100, 2400))
    size = (round(short * rng.uniform(1, 1.6)), round(short))
    size = size if rng.random() < 0.65 else size[::-1]
    if kind == "small":
        form, quality, size = "JPEG", 85, (512, 384)
    coarse = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    image = np.clip(smooth + rng.integers(-9, 10, smooth.shape, np.int16), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({} if form == "PNG" else {"quality": quality}))
    failure, data = rng.random(), buffer.getvalue()
    if kind == "small":
        return data
    return None if failure < 0.03 else data[: len(data) // 2] if failure < 0.04 else data


class Answers:
    """The answers to GET /{kind}/{number}, and when they are due: ``rate`` images per second, None for at once."""

    def __init__(self, folder: Path, rate: float | None) -> None:
        self.rate, self.next_slot = rate, 0.0
        self.images: dict[bytes, bytes] = {}
        for file in folder.glob("*/*"):
            data = file.read_bytes()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
            self.images[f"/{file.parent.name}/{file.name}".encode()] = head + data

    def take_turn(self, now: float) -> float:
        """Returns the time at which the next image is due, over all connections."""
        if self.rate is None:
            return now
        self.next_slot = max(now, self.next_slot + 1 / self.rate)
        return self.next_slot


class Connection(asyncio.Protocol):
    """Answers a client's requests, images when due and anything else at once; stays open if the client does."""

    def __init__(self, answers: Answers) -> None:
        self.answers, self.head = answers, b""

    def connection_made(self, transport: Any) -> None:
        """Accepts a connection; uvloop's transport is of no class of asyncio's."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers the requests that are complete."""
        self.head += data
        while b"\r\n\r\n" in self.head:
            request, _, self.head = self.head.partition(b"\r\n\r\n")
            answer = self.answers.images.get(request.split(b" ", 2)[1].partition(b"?")[0])
            close = b"connection: close" in request.lower()
            loop = asyncio.get_running_loop()
            now = loop.time()
            due = now if answer is None else self.answers.take_turn(now)
            sent = MISSING if answer is None else answer
            if due > now:
                loop.call_at(due, self._send, sent, close)
            else:
                self._send(sent, close)

    def _send(self, answer: bytes, close: bool) -> None:
        self.transport.write(answer)
        if close:
            self.transport.close()


def serve_from_memory(folder: Path, port: int, rate: float | None) -> None:
    """Serves the files of ``folder`` until the process is terminated."""
    answers = Answers(folder, rate)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(answers), HOST, port, backlog=BACKLOG)
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def start_server(
    folder: Path, kinds: Sequence[Kind], files: int, rate: float | None = None
) -> Iterator[tuple[str, int]]:
    """Makes ``files`` files of each kind in ``folder`` and serves them from a process of its own.

    Yields the server's name, "nginx" where it is installed and ``rate`` is None, else "asyncio", and its port.
    """
    folder.chmod(0o755)  # nginx's worker is another user
    for kind in kinds:
        (folder / kind).mkdir()
        for index in range(files):
            data = make_photo(kind, index)
            if data is not None:
                (folder / kind / str(index)).write_bytes(data)
    with socket.create_server((HOST, 0)) as free:
        port = int(free.getsockname()[1])
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") if rate is None else None
    if nginx:
        settings = NGINX.format(folder=folder, host=HOST, port=port, backlog=BACKLOG)
        (folder / "nginx.conf").write_text(settings)
        words = [nginx, "-c", str(folder / "nginx.conf")]
    else:
        words = [sys.executable, "-m", "benchmarks.image_server", str(folder), str(port)]
        words += [] if rate is None else ["--rate", str(rate)]
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        _wait_for_answer(process, port)
        yield "nginx" if nginx else "asyncio", port
    finally:
        process.terminate()
        process.wait()


def _wait_for_answer(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until the server accepts connections."""
    deadline = time.monotonic() + STARTING
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        assert process.poll() is None, f"the server ended with status {process.returncode}"
        assert time.monotonic() < deadline, f"the server does not answer after {STARTING:g} s"
        time.sleep(0.1)


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    serve_from_memory(options.folder, options.port, options.rate)


if __name__ == "__main__":
    main()
