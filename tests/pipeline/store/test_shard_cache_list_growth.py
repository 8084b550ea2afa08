"""A growing list: finished rows are not processed again, and the result equals that of a fresh run."""

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

from pipeline.store.run import Run
from tests.helpers.paths import ROOT


class Site:
    """A web server with a small image at every numeric path; counts the requests for them."""

    def __init__(self, address: str) -> None:
        self.address, self.requests, self.lock = address, 0, Lock()


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            name = self.path.strip("/")
            body = make_image(int(name)) if name.isdigit() else b""
            with state.lock:
                state.requests += name.isdigit()
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


def make_image(number: int) -> bytes:
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


def run_to_annotate(run: Path, path: Path, per_shard: int) -> dict[str, list[list[object]]]:
    """Runs up to annotate; returns stage -> [path, sha256] of every output."""
    words = [sys.executable, "-m", "pipeline", "run", "configs/your_urls.yaml", f"run={run}", f"listing.path={path}"]
    words += [f"listing.rows_per_shard={per_shard}", "download.image_size=24", "--until", "annotate"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    artifacts = Run(str(run)).artifacts()
    return {name: [[o.path, o.sha256] for o in artifacts[name].manifest.outputs] for name in ("download", "annotate")}


@pytest.mark.slow
@pytest.mark.timeout(9000)
@pytest.mark.parametrize(("rows", "per_shard"), [(500, 10), (100_000, 1_000)])
def test_one_percent_more_rows_process_at_most_two_percent_of_the_shards(
    site: Site, tmp_path: Path, rows: int, per_shard: int
) -> None:
    path, run = tmp_path / "list.csv", tmp_path / "run"
    write_list(path, site, rows)
    first = run_to_annotate(run, path, per_shard)
    assert site.requests == rows
    write_list(path, site, rows + rows // 100)
    grown = run_to_annotate(run, path, per_shard)
    shards = -(-(rows + rows // 100) // per_shard)
    taken = [event for event in Run(str(run)).events() if event["event"] == "shards_taken_over"]
    assert [event["stage"] for event in taken] == ["download", "annotate"]
    for event in taken:
        assert event["of"] - event["shards"] <= 0.02 * shards, json.dumps(event)
    assert site.requests == rows + rows // 100  # no image twice
    assert grown["download"][: len(first["download"])] == first["download"]
    assert run_to_annotate(tmp_path / "nothing", path, per_shard) == grown
