"""Rate limiting per host."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from yarl import URL

from dataprep.download import rate_limit
from dataprep.download.config import FetchConfig
from dataprep.download.rate_limit import HostLimiter, HostLimiters, parse_retry_after
from dataprep.io.failure_reasons import TRANSIENT, FailedError
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


STAY_AWAY = {"Retry-After": "86400"}
PATIENT = FetchConfig(concurrency=4, retries=1, backoff=0.01, max_retry_after=0.3, timeout=5.0)


def test_a_refused_url_does_not_close_its_host(web: Web) -> None:
    urls = [web.put(f"/{index}", b"%d" % index) for index in range(60)]
    for index in (3, 17, 40):
        urls[index] = web.put(f"/{index}", b"", 429, Retry_After="86400")
    got = fetch_all(urls, PATIENT, web.hosts)
    assert [one.reason for one in got] == ["http_429" if index in (3, 17, 40) else None for index in range(60)]
    assert all(web.asked.count(f"/{index}") == 2 for index in (3, 17, 40))  # asked for again, later
    assert web.asked.index("/3", web.asked.index("/3") + 1) > web.asked.index("/10")


def test_a_refused_url_is_taken_when_it_is_there_later(web: Web) -> None:
    def busy(request: BaseHTTPRequestHandler) -> None:
        web.put("/busy", b"now")
        request.send_response(503)
        request.send_header("Retry-After", "86400")
        request.send_header("Content-Length", "0")
        request.end_headers()

    web.pages["/busy"] = busy
    assert fetch_all([web.url("/busy")], PATIENT, web.hosts)[0].body == b"now"


def test_a_host_that_keeps_refusing_is_given_up(web: Web) -> None:
    urls = [web.put(f"/{index}", b"", 429, Retry_After="86400") for index in range(200)]
    got = fetch_all(urls, PATIENT, web.hosts)
    reasons = Counter(one.reason for one in got)
    assert set(reasons) == {"http_429", "host_closed"} and reasons["host_closed"] > 150
    assert len(web.asked) < 50  # four at a time until the fifth refusal in a row
    assert {one.error for one in got if one.reason == "host_closed"} == {"HTTP 429: the host keeps asking to stay away"}
    assert "host_closed" in TRANSIENT  # retry_failed asks again


def test_waiting_for_the_host_is_not_waiting_for_the_url(web: Web) -> None:
    # The deadline is a second; the last URL waits longer for its turn, and is still asked for again.
    web.put("/x", b"x")
    config = PATIENT.model_copy(update={"timeout": 0.4, "deadline": 1.0, "concurrency": 64})
    web.put("/robots.txt", b"User-agent: *\nCrawl-delay: 0.06\n")
    web.put("/bad", b"", 500)
    assert fetch_all([web.url("/x")] * 20 + [web.url("/bad")], config, web.hosts)[-1].reason == "http_5xx"
    assert web.asked.count("/bad") == 2


def refuse(turn: HostLimiter, sent: float) -> None:
    turn.retry_after(STAY_AWAY, 503, sent)


def test_refusals_count_once_for_requests_in_flight_and_are_forgotten_after_an_answer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turn = HostLimiter(9, 0.0, 0.01)
        before = loop.time()
        for _ in range(20):
            refuse(turn, before)
        turn.check_open()
        for _ in range(30):
            await asyncio.sleep(0.001)
            refuse(turn, loop.time())
            turn.answered()
        for _ in range(rate_limit.CLOSE_AFTER - 1):
            await asyncio.sleep(0.001)
            turn.check_open()
            refuse(turn, loop.time())
        turn.check_open()
        await asyncio.sleep(0.001)
        refuse(turn, loop.time())
        with pytest.raises(FailedError, match="503") as caught:
            turn.check_open()
        assert caught.value.reason == "host_closed"

    asyncio.run(main())


def test_a_waiting_request_fails_when_the_host_closes() -> None:
    async def main() -> None:
        loop, turn = asyncio.get_running_loop(), HostLimiter(9, 0.05, 0.01)
        async with turn:
            later = asyncio.ensure_future(turn.__aenter__())
            for _ in range(rate_limit.CLOSE_AFTER):
                await asyncio.sleep(0.001)
                refuse(turn, loop.time())
        with pytest.raises(FailedError, match="503") as caught:
            await later
        assert caught.value.reason == "host_closed"

    asyncio.run(main())
