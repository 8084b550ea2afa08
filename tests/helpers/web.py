"""A real HTTP server on loopback, and fetching from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from dataprep.download.address_guard import Hosts
from dataprep.download.config import FetchConfig
from dataprep.download.fetch import Fetched, fetch_each

POLICIES = ("/robots.txt", "/.well-known/tdmrep.json")
Handle = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """Answers GET by a dict of path -> handler; records the requested paths."""

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


@contextmanager
def serve_web() -> Iterator[Web]:
    """Serves a `Web` while the context lasts."""

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
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch_all(urls: Iterable[str], config: FetchConfig, hosts: Hosts | None = None) -> list[Fetched]:
    """Fetches ``urls``; returns one `Fetched` per URL, in their order."""
    found: dict[int, Fetched] = {}
    fetch_each(urls, found.__setitem__, lambda fetched: fetched, config, hosts)
    return [found[index] for index in range(len(found))]
