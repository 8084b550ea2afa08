"""A proxy for an S3 server that injects the faults of large object stores."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
PASSED_ON = ("content-type", "etag", "last-modified", "content-range", "accept-ranges")


class Faults:
    """Faults. Each number is a period: 3 means every third request that the fault applies to; 0 never.

    Attributes:
        bucket: the URL of the bucket that is behind it.
        throttled: answered with 503 SlowDown.
        broken_reads: the connection breaks in the middle of an object that is read.
        torn_writes: the connection breaks in the middle of an object that is written, which is then never there.
        lost_answers: an object is written, and the connection breaks before the answer.
        lag: seconds for which a listing does not show what was written.
        hold: uploads wait for this before anything is done about them.
    """

    def __init__(self) -> None:
        self.throttled = self.broken_reads = self.torn_writes = self.lost_answers = 0
        self.bucket = ""
        self.lag = 0.0
        self.hold: threading.Event | None = None
        self.uploads = threading.Semaphore(0)  # released for each upload that begins
        self.happened: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.written: dict[str, float] = {}
        self.lock = threading.Lock()

    def due(self, kind: str) -> bool:
        """Returns whether this request has the fault."""
        period = getattr(self, kind)
        with self.lock:
            self.seen[kind] += bool(period)
            hit = bool(period) and self.seen[kind] % period == 0
            self.happened[kind] += hit
        return hit

    def visible(self, listing: bytes) -> bytes:
        """Returns the listing as of `lag` seconds ago."""
        known = {name for name, when in self.written.items() if time.monotonic() - when < self.lag}

        def entry(match: re.Match[bytes]) -> bytes:
            name = unquote(re.search(rb"<Key>(.*?)</Key>", match[0])[1].decode())  # type: ignore[index]
            self.happened["lag"] += name in known
            return b"" if name in known else match[0]

        return re.sub(rb"<Contents>.*?</Contents>", entry, listing, flags=re.S)


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, upstream: tuple[str, int], faults: Faults, *request: Any) -> None:
        self.upstream, self.faults = upstream, faults
        super().__init__(*request)  # answers it

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and key:
            self.faults.uploads.release()
            if self.faults.due("torn_writes"):
                self.rfile.read(length // 2)
                return self.hang_up()
        body = self.rfile.read(length)
        if self.faults.hold is not None and self.command == "PUT":
            self.faults.hold.wait(30)
        if self.faults.due("throttled"):
            return self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
        connection = http.client.HTTPConnection(*self.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        if self.command == "PUT" and key:
            self.faults.written[key] = time.monotonic()
            if self.faults.due("lost_answers"):
                return self.hang_up()
        if self.command == "GET" and "list-type" in parse_qs(url.query):
            content = self.faults.visible(content)
        headers = {name: value for name, value in reply.getheaders() if name.lower() in PASSED_ON}
        headers |= {name: value for name, value in reply.getheaders() if name.lower().startswith("x-amz")}
        size = int(reply.headers.get("Content-Length") or len(content)) if self.command == "HEAD" else len(content)
        broken = self.command == "GET" and key and reply.status < 300 and self.faults.due("broken_reads")
        return self.answer(reply.status, headers, content, size, broken=bool(broken))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def answer(
        self, status: int, headers: dict[str, str], content: bytes, size: int | None = None, broken: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if size is None else size))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if broken else content)
        if broken:
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty(upstream: tuple[str, int], faults: Faults) -> Iterator[str]:
    """Serves a proxy to ``upstream``; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Proxy, upstream, faults))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def publish_from_elsewhere(local: str, path: str) -> None:
    """Entry point of a separate process."""
    from dataprep.io import storage

    storage.publish(local, path)
