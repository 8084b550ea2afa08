"""A hostile web on loopback, on raw sockets to violate HTTP at will.

127.0.0.1 stands for the public internet and is asked by name; 127.0.0.2 is the secret inside, where nobody may knock.
"""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import trustme
from PIL import Image

from tests.helpers.images import encoded, picture

PUBLIC, SECRET = "127.0.0.1", "127.0.0.2"
JPEG = encoded(picture(1), "JPEG")
PNG = encoded(picture(2))
Send = Callable[[bytes], None]


def answer(body: bytes = b"", status: str = "200 OK", **headers: object) -> bytes:
    """Returns an HTTP response; underscores in header names stand for hyphens."""
    fields = {"Content-Length": len(body), "Connection": "close"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body


def to(location: str, status: str = "302 Found") -> bytes:
    """Returns a redirect."""
    return answer(b"", status, Location=location)


def drip(data: bytes, seconds: float) -> Callable[[Send], None]:
    """Sends ``data`` byte by byte."""

    def send_slowly(send: Send) -> None:
        for byte in data:
            send(bytes([byte]))
            time.sleep(seconds)

    return send_slowly


def endless(head: bytes, block: bytes) -> Callable[[Send], None]:
    """Sends ``head``, then ``block`` until the client disconnects."""

    def send_forever(send: Send) -> None:
        send(head)
        while True:
            send(block)

    return send_forever


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """Returns a grey PNG with this size in its header and ``data`` (compressed) as pixels."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    chunks = (header, b"IDAT" + data, b"IEND")
    framed = (len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def white_png(side: int) -> bytes:
    """Returns a valid black 1-bit PNG that is a small file: 30000 pixels a side are about 110 KB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    return png_of(side, side, b"".join(packer.compress(row) for _ in range(side)) + packer.flush())


def jpeg_of(width: int, height: int) -> bytes:
    """Returns a JPEG with this size in its header."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + JPEG[at + 4 :]


GREY16 = encoded(Image.fromarray(np.full((40, 40), 32768, np.uint16)))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.2/"/></svg>'
HTML = b"<!DOCTYPE html><html><head><title>Gone</title></head><body>Gone</body></html>"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONE = b"HTTP/1.1 200 OK\r\n"


def pages(secret: str) -> dict[str, bytes | Callable[[Send], None]]:
    """Returns {path: response}; ``secret`` is the base URL of what must not be requested."""
    bomb = gzip.compress(bytes(64 << 20))
    return _redirects(secret) | {
        "/good.jpg": answer(JPEG),
        "/lying-type.jpg": answer(PNG, Content_Type="text/html"),
        "/grey16.png": answer(GREY16),
        "/gzip.jpg": answer(gzip.compress(JPEG), Content_Encoding="gzip"),
        "/drip.jpg": drip(answer(JPEG), 0.02),
        "/drip-head.jpg": drip(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100, 0.02),
        "/silent.jpg": lambda send: time.sleep(3),
        "/endless.jpg": endless(LONE + b"Connection: close\r\n\r\n" + JPEG[:64], bytes(1 << 16)),
        "/endless-chunks.jpg": endless(CHUNKED + b"40\r\n" + JPEG[:64] + b"\r\n", b"8000\r\n" + bytes(32768) + b"\r\n"),
        "/endless-head.jpg": endless(LONE, b"X-Header: " + b"y" * 100 + b"\r\n"),
        "/informational.jpg": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        "/hints.jpg": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + answer(JPEG),
        "/tiny-chunks.jpg": endless(CHUNKED, b"1\r\nx\r\n" * 1000),
        "/trailers.jpg": endless(CHUNKED + b"1\r\n\xff\r\n0\r\n", b"X-Trailer: y\r\n" * 1000),
        "/more-than-asked.jpg": answer(JPEG, Connection="keep-alive") + answer(PNG, Connection="keep-alive"),
        "/long-head.jpg": answer(JPEG, X_Long="y" * 100_000),
        "/not-http.jpg": b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(200),
        "/negative-length.jpg": answer(JPEG, Content_Length=-5),
        "/huge-length.jpg": answer(JPEG, Content_Length=10**11),
        "/long-length.jpg": answer(JPEG, Content_Length=len(JPEG) + 100),
        "/short-length.jpg": answer(JPEG, Content_Length=len(JPEG) - 300),
        "/cut-chunks.jpg": CHUNKED + b"400\r\n" + JPEG[:500],
        "/bad-chunks.jpg": CHUNKED + b"zz\r\n" + JPEG,
        "/bomb.jpg": answer(bomb, Content_Encoding="gzip"),
        "/bomb-of-bombs.jpg": answer(gzip.compress(bomb), Content_Encoding="gzip, gzip"),
        "/broken-gzip.jpg": answer(gzip.compress(JPEG)[:200] + bytes(300), Content_Encoding="gzip"),
        "/unknown-encoding.jpg": answer(b"\x01\x02" * 50, Content_Encoding="x-own"),
        "/pixels.png": answer(png_of(60_000, 60_000)),
        "/pixels-whole.png": answer(white_png(30_000)),
        "/pixels.jpg": answer(jpeg_of(65_000, 65_000)),
        "/pixels.gif": answer(b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0;"),
        "/picture.svg": answer(SVG, Content_Type="image/svg+xml"),
        "/page.jpg": answer(HTML, Content_Type="image/jpeg"),
        "/empty.jpg": answer(b"", Content_Type="image/jpeg"),
        "/two-bytes.jpg": answer(b"\xff\xd8"),
        "/cut.jpg": answer(JPEG[:-300]),
        "/noise.png": answer(PNG[:200] + bytes(range(256)) * 4 + PNG[1224:]),
        "/no-content.jpg": answer(b"", "204 No Content", Content_Length=None),
        "/partial.jpg": answer(JPEG, "206 Partial Content"),
        "/401.jpg": answer(b"", "401 Unauthorized"),
        "/403.jpg": answer(b"", "403 Forbidden"),
        "/410.jpg": answer(b"", "410 Gone"),
        "/418.jpg": answer(b"", "418 I'm a teapot"),
        "/500.jpg": answer(JPEG, "500 Internal Server Error"),
        "/999.jpg": answer(JPEG, "999 Request denied"),
        "/noai.jpg": answer(JPEG, X_Robots_Tag="noai"),
        "/noimageai.jpg": answer(JPEG, X_Robots_Tag="nofollow, NoImageAI"),
        "/none.jpg": answer(JPEG, X_Robots_Tag="none"),
        "/tdm-header.jpg": answer(JPEG, TDM_Reservation="1"),
    }


def _redirects(secret: str) -> dict[str, bytes | Callable[[Send], None]]:
    """Returns {path: response} of the pages that lead elsewhere."""
    return {
        "/redirected.jpg": to("/good.jpg", "307 Temporary Redirect"),
        "/in.jpg": to(f"{secret}/x.jpg"),
        "/in-relative.jpg": to(f"//{secret.partition('//')[2]}/x.jpg"),
        "/in-name.jpg": to(secret.replace(SECRET, "internal.test") + "/x.jpg"),
        "/in-disguise.jpg": to(secret.replace(SECRET, "2130706434") + "/x.jpg"),
        "/chain.jpg": to("/chain2.jpg", "301 Moved Permanently"),
        "/chain2.jpg": to("/chain3.jpg", "308 Permanent Redirect"),
        "/chain3.jpg": to(f"{secret}/x.jpg"),
        "/in-file.jpg": to("file:///etc/passwd"),
        "/in-user.jpg": to("http://good.test@127.0.0.2/"),
        "/nowhere.jpg": answer(b"", "302 Found"),
        "/loop.jpg": to("/loop.jpg"),
    }


def policies(host: str) -> dict[str, bytes]:
    """Returns robots.txt and tdmrep.json of the hosts that have any."""
    return {
        "robots.test": {"/robots.txt": answer(b"User-agent: *\nDisallow: /good\n")},
        "closed.test": {"/robots.txt": answer(b"", "503 Service Unavailable")},
        "tdm.test": {"/.well-known/tdmrep.json": answer(b'[{"location": "/*.jpg$", "tdm-reservation": 1}]')},
        "busy.test": {"/good.jpg": answer(b"", "429 Too Many Requests", Retry_After=86400)},
        "maze.test": {"/robots.txt": to("/robots.txt")},
        "stars.test": {"/robots.txt": answer(b"User-agent: *\n" + (b"Disallow: /" + b"*a" * 60 + b"$\n") * 3900)},
        "flood.test": {"/robots.txt": answer(b"Disallow: /" + b"*a" * 200_000)},
    }.get(host, {})


class Site:
    """One listening socket with its requests and its number of connections."""

    def __init__(self, address: str, tls: bool = False) -> None:
        self.asked: list[tuple[str, str]] = []  # (host without port, path)
        self.connections = 0
        self.pages: dict[str, bytes | Callable[[Send], None]] = {}
        self.listening = socket.create_server((address, 0), backlog=256)
        self.port = self.listening.getsockname()[1]
        self.context: ssl.SSLContext | None = None
        if tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert("good.test").configure_cert(self.context)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        try:
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head and (block := connection.recv(4096)):
                head += block
            lines = head.decode("latin-1").split("\r\n")
            path = [*lines[0].split(" "), ""][1]
            host = next((line[5:].strip() for line in lines if line.lower().startswith("host:")), "").split(":")[0]
            self.asked.append((host, path))
            page = policies(host).get(path) or self.pages.get(path.partition("?")[0]) or answer(b"", "404 Not Found")
            page(connection.sendall) if callable(page) else connection.sendall(page)
        except OSError:
            pass
        finally:
            connection.close()


@contextmanager
def hostile() -> Iterator[tuple[Site, Site, Site]]:
    """Serves (public, secret, TLS with a self-signed certificate)."""
    sites = (Site(PUBLIC), Site(SECRET), Site(PUBLIC, tls=True))
    secret = f"http://{SECRET}:{sites[1].port}"
    sites[0].pages = pages(secret)
    sites[1].pages = {"/x.jpg": answer(JPEG)}
    sites[2].pages = {"/good.jpg": answer(JPEG)}
    try:
        yield sites
    finally:
        for site in sites:
            site.listening.close()
