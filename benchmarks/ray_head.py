"""A Ray head on this machine for benchmarks: its own ports, folder and process group, and only these are ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT = 120.0  # seconds for the dashboard to answer


@contextmanager
def start_head(cpus: int) -> Iterator[str]:
    """Yields the address of the dashboard of a head, which stops at the end."""
    port, dashboard, agent = _find_ports(3)
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets live in it, and their paths are limited
    bin_folder = Path(sys.executable).parent
    words = [f"{bin_folder}/ray", "start", "--head", "--block", f"--num-cpus={cpus}", f"--port={port}"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    # By default it is one port for all heads of a machine, and the second has no agent to run jobs.
    words += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=200000000", "--disable-usage-stats"]
    env = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _await_answer(address)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _find_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _await_answer(address: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
