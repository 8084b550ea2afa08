"""Connections: one URL never gets another's answer, and floods before and around a body end early."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from dataprep.download import connection as module
from dataprep.download.config import FetchConfig
from dataprep.download.connection import MAX_INFORMATIONAL, GuardedConnection, UnaskedBytesError
from tests.helpers.web import fetch_all

Answer = Callable[[socket.socket, str], None]
CONFIG = FetchConfig(
    retries=1, backoff=0.0, timeout=5.0, concurrency=2, host_delay=0.0, obey_robots_txt=False, obey_tdm=False
)
BLOCK = b"0123456789" * 2000


def response(path: str, body: bytes | None = None) -> bytes:
    """Returns a response on a connection that stays open; its body names the path."""
    body = path.encode() + b"|" + BLOCK if body is None else body
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[dict[str, tuple[str, int]], list[int]]]:
    """Serves connections that stay open; yields the hosts to fetch from and a list with an entry per connection."""
    listening, connections = socket.create_server(("127.0.0.1", 0), backlog=64), []

    def talk(connection: socket.socket) -> None:
        held = b""
        with connection:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while True:
                    while b"\r\n\r\n" not in held:
                        block = connection.recv(4096)
                        if not block:
                            return
                        held += block
                    head, _, held = held.partition(b"\r\n\r\n")
                    answer(connection, head.split(b" ")[1].decode())
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connections.append(1)
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield {"web.test": ("127.0.0.1", listening.getsockname()[1])}, connections
    finally:
        listening.close()


def fetch_paths(hosts: dict[str, tuple[str, int]], count: int = 40, config: FetchConfig = CONFIG) -> list[bytes | None]:
    return [fetched.body for fetched in fetch_all([f"http://web.test/{n}" for n in range(count)], config, hosts)]


EXTRA = response("/wrong")


def at_once(connection: socket.socket, path: str) -> None:
    connection.sendall(response(path) + EXTRA)


def with_the_end(connection: socket.socket, path: str) -> None:
    whole = response(path)
    connection.sendall(whole[:-100])
    time.sleep(0.005)
    connection.sendall(whole[-100:] + EXTRA)


def a_little_later(connection: socket.socket, path: str) -> None:
    connection.sendall(response(path))
    time.sleep(0.002 * (int(path[1:]) % 3))
    connection.sendall(EXTRA)


def in_parts(connection: socket.socket, path: str) -> None:
    connection.sendall(response(path) + EXTRA[:20])
    time.sleep(0.01)
    connection.sendall(EXTRA[20:])


def noise(connection: socket.socket, path: str) -> None:
    connection.sendall(response(path))
    time.sleep(0.005)
    connection.sendall(b"\r\n\x00\xff noise")


@pytest.mark.parametrize("answer", [at_once, with_the_end, a_little_later, in_parts, noise])
def test_bytes_that_nobody_asked_for_reach_no_other_url(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 1.0)  # beyond what a busy machine adds to the milliseconds of ``answer``
    with serve(answer) as (hosts, _):
        for index, body in enumerate(fetch_paths(hosts, 60)):
            assert body is not None and body.partition(b"|")[0] == b"/%d" % index


@pytest.mark.parametrize("read", [True, False])
def test_an_answer_before_the_request_is_no_answer(read: bool) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        _, connection = await loop.create_connection(functools.partial(GuardedConnection, loop=loop), sock=ours)
        theirs.sendall(EXTRA)
        await asyncio.sleep(0.01 * read)
        connection.set_response_params()
        with pytest.raises(UnaskedBytesError):
            await asyncio.wait_for(connection.read(), 1)
        connection.close()
        theirs.close()

    asyncio.run(check())


def test_other_connections_are_used_again() -> None:
    with serve(lambda connection, path: connection.sendall(response(path))) as (hosts, connections):
        assert all(fetch_paths(hosts))
        assert len(connections) <= 2


def test_bytes_in_the_kernel_count_before_the_loop_has_read_them() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        _, connection = await loop.create_connection(functools.partial(GuardedConnection, loop=loop), sock=ours)
        assert connection.is_connected()
        theirs.sendall(b"H")  # the loop does not run before the next line
        assert not connection.is_connected()
        await asyncio.sleep(0.01)
        assert not connection.is_connected()
        connection.close()
        theirs.close()

    asyncio.run(check())


def forever(block: bytes, head: bytes = b"") -> Answer:
    def flood(connection: socket.socket, path: str) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(block)

    return flood


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FLOODS = {
    "1xx": forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "1xx with headers": forever(b"HTTP/1.1 103 Early Hints\r\n" + b"Link: </a>\r\n" * 50 + b"\r\n"),
    "headers": forever(b"X-A: b\r\n" * 2000, b"HTTP/1.1 200 OK\r\n"),
    "one header": forever(b"y" * 9000, b"HTTP/1.1 200 OK\r\nX-A: "),
    "status line": forever(b"9" * 9000, b"HTTP/1.1 2"),
    "chunks of one byte": forever(b"1\r\nx\r\n" * 2000, CHUNKED),
    "chunk extensions": forever(b"1;" + b"e" * 1000 + b"\r\nx\r\n", CHUNKED),
    "trailers": forever(b"X-A: b\r\n" * 2000, CHUNKED + b"1\r\nx\r\n0\r\n"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_early_and_leaves_time_to_others(name: str) -> None:
    config = CONFIG.model_copy(update={"retries": 0, "timeout": 30.0, "concurrency": 16})
    with serve(FLOODS[name]) as (flood, _), serve(lambda c, path: c.sendall(response(path))) as (good, _):
        hosts = {"flood.test": flood["web.test"], "web.test": good["web.test"]}
        urls = [f"http://{'flood' if n % 5 == 0 else 'web'}.test/{n}" for n in range(100)]
        started = time.process_time()
        found = fetch_all(urls, config, hosts)
        spent = time.process_time() - started
    for index, fetched in enumerate(found):
        if index % 5:
            assert fetched.body is not None, fetched.error
        else:
            assert fetched.reason in ("bad_response", "connection"), (fetched.reason, fetched.error)
    assert spent < 10, (
        spent
    )  # seconds of CPU, the flooding server's threads included: without limits it is 30 s times 20


def test_informational_responses_are_skipped() -> None:
    for count, fine in ((1, True), (MAX_INFORMATIONAL, True), (MAX_INFORMATIONAL + 1, False)):
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * count

        def answer(connection: socket.socket, path: str, hints: bytes = hints) -> None:
            connection.sendall(hints + response(path))

        with serve(answer) as (hosts, _):
            assert all((body is not None) == fine for body in fetch_paths(hosts, 5)), count


@pytest.mark.parametrize("side", [1, 16, 4096])
def test_honest_chunks_are_read(side: int) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        body = path.encode() + b"|" + BLOCK[: side * 1000]
        pieces = (body[start : start + side] for start in range(0, len(body), side))
        connection.sendall(CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")

    with serve(answer) as (hosts, _):
        for index, body in enumerate(fetch_paths(hosts, 10)):
            assert body is not None and body.partition(b"|")[0] == b"/%d" % index


def test_the_library_still_makes_connections_where_we_replace_it() -> None:
    async def make() -> object:
        async with aiohttp.TCPConnector() as connector:
            return connector._factory()

    assert type(asyncio.run(make())) is GuardedConnection.__mro__[1]
