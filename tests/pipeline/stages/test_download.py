"""`download.retry_failed`: retry passes over transient failures only."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import pytest
from PIL import Image

from dataprep.io.parquet import read_table
from pipeline.config_loading import load_config
from pipeline.execution.executor import run_pipeline
from pipeline.runtime.shard_stream import ShardStream
from pipeline.store.artifact import Artifact
from pipeline.store.run import verify_outputs
from tests.helpers.paths import ROOT
from tests.helpers.thread_workers import run_in_threads

# How many times a path answers 503 before it succeeds; "gone" always answers 404.
TROUBLE = {"0": 0, "1": 1, "2": 0, "3": 2, "gone": 0, "5": 0, "6": 0, "7": 1}


class Site:
    """A web server that counts its requests."""

    def __init__(self) -> None:
        self.address, self.lock = "", Lock()
        self.requests: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()

    def take_requests(self) -> Counter[str]:
        """Returns the image requests since the last call, without robots.txt and the like."""
        found = Counter({name: count for name, count in self.requests.items() if name in TROUBLE})
        before, self.reported = self.reported, found
        return found - before


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.strip("/")
            with state.lock:
                state.requests[name] += 1
                late = state.requests[name] <= TROUBLE.get(name, 0)
            buffer = io.BytesIO()
            if name.isdigit():
                Image.fromarray(np.full((24, 24, 3), 30 * int(name), np.uint8)).save(buffer, "PNG")
            body = buffer.getvalue() if not late else b""
            self.send_response(503 if late else 200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Site()
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def run_to(stage: str, site: Site, tmp_path: Path, passes: int, stream: bool = False) -> dict[str, Artifact]:
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["url", "caption"], *([f"{site.address}/{name}", f"picture {name}"] for name in TROUBLE)])
    settings = [f"run={tmp_path / 'run'}", f"listing.path={tmp_path / 'list.csv'}", "listing.rows_per_shard=2"]
    settings += ["download.fetch.retries=0", f"download.retry_failed={passes}"]
    settings += ["cluster.cpus=2", f"cluster.stream={stream}"]
    run = run_pipeline(load_config(str(ROOT / "configs" / "your_urls.yaml"), settings), "test", until=stage)
    assert [problem for _, _, problems in verify_outputs(run) for problem in problems] == []
    return run.artifacts()


def run_download(site: Site, tmp_path: Path, passes: int) -> tuple[Artifact, list[str | None]]:
    """Returns the stage's artifact and the failure reason of every row."""
    artifact = run_to("download", site, tmp_path, passes)["download"]
    rows = [read_table(path, "download")["reason"].to_pylist() for path in artifact.files()]
    return artifact, [reason for shard in rows for reason in shard]


@pytest.mark.usefixtures("local_ray")
def test_passes_retry_transient_failures_only(site: Site, tmp_path: Path) -> None:
    artifact, reasons = run_download(site, tmp_path, 0)
    assert reasons == [None, "http_5xx", None, "http_5xx", "http_404", None, None, "http_5xx"]
    assert site.take_requests() == Counter(list(TROUBLE))
    # More passes in a finished run: its shards are reused, three rows are requested again.
    artifact, reasons = run_download(site, tmp_path, 1)
    assert reasons == [None, None, None, "http_5xx", "http_404", None, None, None]
    assert site.take_requests() == Counter(["1", "3", "7"])
    artifact, reasons = run_download(site, tmp_path, 3)
    assert reasons == [None, None, None, None, "http_404", None, None, None]
    assert site.take_requests() == Counter(["3"])
    counters = artifact.manifest.counters
    assert [counters[name] for name in ("rows", "success", "failed_to_download")] == [8, 7, 1]
    assert counters["http_404"] == 1 and counters["http_5xx"] == 0 and counters["retried"] == 4
    tars = [Path(path) for path in artifact.files("tar")]
    assert [tar.parent.name.startswith("pass-") for tar in tars] == [True, True, False, True]
    assert counters["bytes"] == sum(tar.stat().st_size for tar in tars)


def test_with_streaming_only_shards_that_no_pass_writes_again_are_handed_over_early(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_threads(monkeypatch, cpus=2)
    early: dict[str, list[int]] = {}
    close = ShardStream.close

    def note_and_close(self: ShardStream, artifact: Artifact) -> None:
        early[self.stage] = sorted(self.offered)
        close(self, artifact)

    monkeypatch.setattr(ShardStream, "close", note_and_close)
    found = []
    for stream in (False, True):
        site.requests.clear()
        folder = tmp_path / f"{stream}"
        folder.mkdir()
        made = run_to("annotate", site, folder, 1, stream)
        found.append({name: made[name].manifest.outputs for name in ("listing", "download", "annotate")})
    assert found[0] == found[1]
    assert early == {"listing": [0, 1, 2, 3], "download": [2]}  # the other shards have a 503
