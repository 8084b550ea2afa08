"""Serves the embedded corpus over loopback HTTP."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from dataprep.synthetic.config import ScenesConfig
from dataprep.synthetic.corpus import CONTENT_TYPE, build_file, build_scene


class _SceneHandler(BaseHTTPRequestHandler):
    """Answers GET /{index:06d}.{extension}; keeps connections alive."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, config: ScenesConfig, seed: int, *args: object) -> None:
        self.config, self.seed = config, seed
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Sends the file; 404 for a dead link and for a path outside the corpus."""
        name, _, extension = self.path.split("?")[0].lstrip("/").partition(".")
        row = (
            build_scene(self.config, self.seed, int(name))
            if name.isdecimal() and int(name) < self.config.count
            else None
        )
        data = build_file(self.config, self.seed, row) if row is not None and row.extension == extension else None
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Type", CONTENT_TYPE[extension] if data is not None else "text/plain")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Logs nothing: a line per request would flood the log."""


class _SceneServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


@contextmanager
def serve_scenes(config: ScenesConfig, seed: int, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """Serves the corpus on a free port while the context lasts; yields (host, port)."""
    server = _SceneServer((host, 0), functools.partial(_SceneHandler, config, seed))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield host, int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
