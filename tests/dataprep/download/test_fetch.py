from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from itertools import count

import numpy as np
import pytest

from dataprep.download.config import FetchConfig
from dataprep.download.fetch import AHEAD, Fetched, fetch_each
from dataprep.io.failure_reasons import REASONS
from tests.helpers.hostile_site import JPEG, Site, answer
from tests.helpers.images import mutate
from tests.helpers.web import Web, fetch_all

QUICK = FetchConfig(timeout=2.0, retries=2, backoff=0.01, concurrency=8)


def fetch(web: Web, url: str, config: FetchConfig = QUICK) -> Fetched:
    return fetch_all([url], config, web.hosts)[0]


def test_results_come_in_order_over_pooled_connections(web: Web) -> None:
    urls = [web.put(f"/{index}", f"body {index}".encode()) for index in range(100)]
    got = fetch_all(iter(urls), QUICK, web.hosts)
    assert [fetched.body for fetched in got] == [f"body {index}".encode() for index in range(100)]
    assert sorted(web.asked) == sorted(f"/{index}" for index in range(100))


def test_an_endless_list_is_read_only_a_window_ahead(web: Web) -> None:
    web.put("/x", b"x")
    taken, config = count(), QUICK.model_copy(update={"concurrency": 2})

    def urls() -> Iterator[str]:
        while True:
            next(taken)
            yield web.url("/x")

    class EnoughError(Exception):
        pass

    def store(index: int, fetched: Fetched) -> None:
        assert fetched.body == b"x"
        if index == 5:
            raise EnoughError

    with pytest.raises(EnoughError):  # as it is, not wrapped
        fetch_each(urls(), store, lambda fetched: fetched, config, web.hosts)
    assert next(taken) <= 6 + AHEAD * 2 + 2


def test_missing_page_is_asked_for_once(web: Web) -> None:
    assert fetch(web, web.url("/missing")) == Fetched(None, "http_404", "HTTP 404")
    assert web.asked == ["/missing"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_server_trouble_is_retried(web: Web, status: int) -> None:
    url = web.put("/busy", b"", status)
    assert fetch(web, url) == Fetched(None, "http_429" if status == 429 else "http_5xx", f"HTTP {status}")
    assert len(web.asked) == 3


def test_a_retry_that_succeeds(web: Web) -> None:
    url = web.put("/late", b"", 503)
    broken = web.pages["/late"]

    def handle(request: BaseHTTPRequestHandler) -> None:
        web.put("/late", b"here")
        broken(request)

    web.pages["/late"] = handle
    assert fetch(web, url) == Fetched(b"here")


def test_redirects_are_followed_and_checked_at_each_hop(web: Web) -> None:
    web.put("/picture", b"picture")
    assert fetch(web, web.put("/old", b"", 302, Location="/picture")).body == b"picture"
    inward = web.put("/inward", b"", 302, Location=f"http://127.0.0.1:{web.address[1]}/picture")
    assert fetch(web, inward).error == "address not public"
    assert fetch(web, web.put("/file", b"", 302, Location="file:///etc/passwd")).error == "scheme file not allowed"
    assert fetch(web, web.put("/loop", b"", 301, Location="/loop")).error == "more than 5 redirects"


def test_size_limit_with_and_without_a_stated_length(web: Web) -> None:
    config = QUICK.model_copy(update={"max_bytes": 1000})
    assert fetch(web, web.put("/just", b"x" * 1000), config).body == b"x" * 1000
    assert fetch(web, web.put("/long", b"x" * 1001), config).error == "body above 1000 bytes"

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 10_000)
        except OSError:
            request.close_connection = True

    web.pages["/endless"] = endless
    assert fetch(web, web.url("/endless"), config).error == "body above 1000 bytes"


def test_a_dripping_server_meets_the_total_timeout(web: Web) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        try:
            for _ in range(100):
                request.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        request.close_connection = True

    web.pages["/drip"] = drip
    config = FetchConfig(timeout=0.3, retries=0)
    assert fetch(web, web.url("/drip"), config) == Fetched(None, "timeout", "timeout after 0.3 s")


def test_a_body_cut_short_and_a_closed_port(web: Web) -> None:
    def cut(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"x")
        request.close_connection = True

    web.pages["/cut"] = cut
    assert fetch(web, web.url("/cut")).error == "body cut short"
    assert len(web.asked) == 3
    closed = {"gone.test": ("127.0.0.1", 1)}
    assert fetch_all(["http://gone.test/"], QUICK, closed) == [Fetched(None, "connection", "connection failed")]


def test_unknown_host(web: Web) -> None:
    assert fetch(web, "http://no-such-name.invalid/x") == Fetched(None, "dns", "host name not found")


def test_mutated_responses_do_no_harm() -> None:
    """Mutated status lines, headers and chunks: each row has a body or a reason."""
    rng = np.random.default_rng(11)
    whole = [
        answer(JPEG[:200]),
        answer(gzip.compress(JPEG), Content_Encoding="gzip"),
        answer(b"", "302 Found", Location="/0", Retry_After=3, X_Robots_Tag="a: noai"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTDM-Reservation: 0\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ]
    site = Site("127.0.0.1")
    try:
        for index in range(400):
            site.pages[f"/{index}"] = mutate(whole[index % len(whole)], rng)
        config = FetchConfig(timeout=20.0, retries=0, obey_robots_txt=False, obey_tdm=False)
        got = fetch_all(
            [f"http://web.test/{index}" for index in range(400)], config, {"web.test": ("127.0.0.1", site.port)}
        )
    finally:
        site.listening.close()
    assert all((one.body is None) == (one.reason in REASONS) for one in got)
    assert {None, "bad_response", "connection"} <= {one.reason for one in got}
