"""Rate limiting per host."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from yarl import URL

from dataprep.download import rate_limit
from dataprep.download.config import FetchConfig
from dataprep.download.rate_limit import HostLimiter, HostLimiters, parse_retry_after
from dataprep.io.failure_reasons import FailedError
from tests.helpers.web import Web, fetch_all

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, 0),
        ("7", 7),
        (" 120 ", 120),
        ("-3", 0),
        ("soon", 0),
        ("٣", 0),
        ("9" * 400, 999_999_999),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thu, 01 Jan 2020 00:00:30 GMT", 0),
        ("Thu, 01 Jan 99999 00:00:30 GMT", 0),
        ("Thu, 01 Jan 2026 00:00:30 +99999999999999999999", 0),
        (f"Thu, {'9' * 20} Jan 2026 00:00:30 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: Any, expected: Any) -> None:
    assert parse_retry_after(value, NOW) == expected


def turns(count: int, concurrency: int, delay: float) -> tuple[list[float], int]:
    """Returns the start of each request in seconds, and the peak concurrency."""
    started: list[float] = []
    now = most = 0

    async def one(turn: HostLimiter) -> None:
        nonlocal now, most
        async with turn:
            started.append(time.monotonic())
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1

    async def main() -> None:
        turn = HostLimiter(concurrency, delay, 20.0)
        await asyncio.gather(*(one(turn) for _ in range(count)))

    before = time.monotonic()
    asyncio.run(main())
    return [moment - before for moment in started], most


def test_requests_are_capped_and_spaced() -> None:
    assert turns(9, 3, 0.0)[1] == 3
    begun, _ = turns(4, 10, 0.05)
    assert all(moment >= 0.05 * index - 0.005 for index, moment in enumerate(begun))


def test_only_hosts_on_the_public_internet_are_limited() -> None:
    async def main() -> list[float]:
        limiters = HostLimiters(2, 0.5, 20.0, {"own.test": ("127.0.0.1", 1)})
        hosts = ("own.test", "127.0.0.1", "10.1.1.1", "[::1]", "8.8.8.8", "example.com")
        return [limiters.get_limiter(URL(f"http://{host}/"), 0.0).delay for host in hosts]

    assert asyncio.run(main()) == [0, 0, 0, 0, 0.5, 0.5]


def test_crawl_delay_of_robots_txt_is_kept_up_to_a_limit(web: Web) -> None:
    web.put("/robots.txt", b"User-agent: *\nCrawl-delay: 30\n")
    web.put("/x", b"x")
    config = FetchConfig(max_crawl_delay=0.1)
    start = time.monotonic()
    assert {got.body for got in fetch_all([web.url("/x")] * 4, config, web.hosts)} == {b"x"}
    assert time.monotonic() - start >= 0.25


def test_public_hosts_get_few_connections(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "is_public", lambda address: True)
    web.put("/x", b"x")
    config = FetchConfig(host_concurrency=2, host_delay=0.0)
    assert len(fetch_all([web.url("/x")] * 30, config, web.hosts)) == 30
    assert web.connections <= 2


def test_retry_after_is_waited_by_the_whole_host(web: Web) -> None:
    def busy(request: BaseHTTPRequestHandler) -> None:
        web.put("/busy", b"now")
        request.send_response(429)
        request.send_header("Retry-After", "1")
        request.send_header("Content-Length", "0")
        request.end_headers()

    web.pages["/busy"] = busy
    start = time.monotonic()
    config = FetchConfig(backoff=0.01)
    assert fetch_all([web.url("/busy")], config, web.hosts)[0].body == b"now"
    assert time.monotonic() - start >= 0.95 and web.asked == ["/busy"] * 2


def test_a_too_long_retry_after_fails_all_rows_of_the_host(web: Web) -> None:
    web.put("/busy", b"", 429, Retry_After="3600")
    config = FetchConfig(concurrency=1)
    got = fetch_all([web.url("/busy")] * 5, config, web.hosts)
    assert {(one.reason, one.error) for one in got} == {("http_429", "HTTP 429: asked to stay away")}
    assert web.asked == ["/busy"]


def test_a_waiting_request_fails_when_the_host_closes() -> None:
    async def main() -> None:
        turn = HostLimiter(5, 0.05, 1.0)
        async with turn:
            later = asyncio.ensure_future(turn.__aenter__())
            await asyncio.sleep(0.01)
            assert turn.retry_after({"Retry-After": "60"}, 503) is None
        with pytest.raises(FailedError, match="503") as caught:
            await later
        assert caught.value.reason == "http_5xx"

    asyncio.run(main())
