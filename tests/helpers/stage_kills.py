"""Drivers of a stage, each with its Ray, killed with SIGKILL: a test file that is run as ``python FILE FOLDER OUT``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.helpers.paths import ROOT

TIMEOUT = 900


@contextmanager
def short_folder() -> Iterator[Path]:
    """Makes a folder with a short path, since Ray's sockets live in it, with ``tmp`` in it."""
    path = Path(tempfile.mkdtemp(prefix="kill-"))
    (path / "tmp").mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def start_driver(script: str, folder: Path, out: Path) -> subprocess.Popen[str]:
    """Starts ``script`` over FOLDER, with outputs to OUT."""
    scratch = str(folder / "tmp")  # leftovers of a killed Ray are deleted with the test's folder
    env = os.environ | {"RAY_TMPDIR": scratch, "TMPDIR": scratch, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, script, str(folder), str(out)]
    return subprocess.Popen(
        words, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def run_to_end(script: str, folder: Path, out: Path) -> dict[str, bytes]:
    """Runs to the end; returns every output file."""
    process = start_driver(script, folder, out)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


def list_markers(out: Path) -> list[Path]:
    """Returns the markers of the committed shards."""
    return list(out.rglob(".shards/*.json"))


def count_done(out: Path) -> int:
    """Returns the number of committed shards."""
    return len(list_markers(out))


def run_and_kill(script: str, folder: Path, out: Path, shards: int, delay: float) -> None:
    """Runs until ``shards`` more are committed and ``delay`` seconds longer, then kills the driver and its Ray."""
    wanted, process = count_done(out) + shards, start_driver(script, folder, out)
    deadline = time.monotonic() + TIMEOUT
    while count_done(out) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, process.communicate()
    tree = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in tree:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate(timeout=TIMEOUT)
