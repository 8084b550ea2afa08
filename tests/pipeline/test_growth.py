"""A list that grows: what was done for its rows is not done again, and the result is that of a run from nothing."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import pytest
from PIL import Image

from pipeline.store import Run

ROOT = Path(__file__).resolve().parents[2]


class Site:
    """Small pictures at any path that is a number; counts what it was asked for."""

    def __init__(self, address: str) -> None:
        self.address, self.asked, self.lock = address, 0, Lock()


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            name = self.path.strip("/")
            body = picture(int(name)) if name.isdigit() else b""
            with state.lock:
                state.asked += name.isdigit()
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket.listen(256)
    state = Site(f"http://127.0.0.1:{server.server_address[1]}")
    Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    colours = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((24, 24), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


def write_list(path: Path, site: Site, rows: int) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows(
            [f"{site.address}/{number}", f"a small picture with number {number}"] for number in range(rows)
        )


def annotate(run: Path, path: Path, per_shard: int) -> dict[str, list[list[object]]]:
    """Runs as far as annotate; {stage: [path, sha256] of every output}."""
    words = [sys.executable, "-m", "pipeline", "run", "configs/your_urls.yaml", f"run={run}", f"listing.path={path}"]
    words += [f"listing.rows_per_shard={per_shard}", "download.image_size=24", "--until", "annotate"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    artifacts = Run(str(run)).artifacts()
    return {name: [[o.path, o.sha256] for o in artifacts[name].manifest.outputs] for name in ("download", "annotate")}


@pytest.mark.slow
@pytest.mark.timeout(9000)
@pytest.mark.parametrize(("rows", "per_shard"), [(500, 10), (100_000, 1_000)])
def test_one_percent_more_rows_cost_two_percent_of_the_shards_at_most(
    site: Site, tmp_path: Path, rows: int, per_shard: int
) -> None:
    path, run = tmp_path / "list.csv", tmp_path / "run"
    write_list(path, site, rows)
    first = annotate(run, path, per_shard)
    assert site.asked == rows
    write_list(path, site, rows + rows // 100)
    grown = annotate(run, path, per_shard)
    shards = -(-(rows + rows // 100) // per_shard)
    taken = [event for event in Run(str(run)).events() if event["event"] == "shards_taken_over"]
    assert [event["stage"] for event in taken] == ["download", "annotate"]
    for event in taken:
        assert event["of"] - event["shards"] <= 0.02 * shards, json.dumps(event)
    assert site.asked == rows + rows // 100  # not one picture twice
    assert grown["download"][: len(first["download"])] == first["download"]
    assert annotate(tmp_path / "nothing", path, per_shard) == grown
