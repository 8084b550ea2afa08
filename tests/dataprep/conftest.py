"""Fixtures: a real HTTP server on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

POLICIES = ("/robots.txt", "/.well-known/tdmrep.json")
Handle = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """Answers GET by a dict of path -> handler; remembers the paths asked for."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.pages: dict[str, Handle] = {}
        self.asked: list[str] = []  # paths, without those of policies
        self.asked_policies: list[str] = []
        self.connections = 0
        self.hosts = {"web.test": address}

    def url(self, path: str) -> str:
        return f"http://web.test{path}"

    def put(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        """Serves ``body`` at ``path``; underscores in header names stand for hyphens."""

        def handle(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)

        self.pages[path] = handle
        return self.url(path)


@pytest.fixture
def web() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            site.connections += 1

        def do_GET(self) -> None:
            (site.asked_policies if self.path in POLICIES else site.asked).append(self.path)
            page = site.pages.get(self.path)
            if page is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                page(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket.listen(128)
    site = Web(("127.0.0.1", server.server_address[1]))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()
