"""Per-host rate limiting: concurrency cap, minimum delay, Retry-After, and hosts that keep asking to stay away."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yarl import URL

from dataprep.download.address_guard import Hosts, is_public
from dataprep.io.failure_reasons import FailedError

UNLIMITED = 1 << 30  # concurrency at own hosts
CLOSE_AFTER = 5  # refusals in a row, each of a request sent after the one before, that close a host
FIRST_PACE, SLOWEST_PACE = (
    0.1,
    1.0,
)  # seconds added between requests after a refusal: doubled by each, halved by answers
FIRST_PAUSE = 1.0  # seconds of silence after the second refusal in a row, doubled by each further one


def parse_retry_after(value: str | None, now: datetime) -> float:
    """Parses a Retry-After header (a number or a date) to seconds from ``now`` (UTC); 0 if it is neither."""
    if value is None:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # numbers of twenty digits
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


class HostLimiter:
    """Rate limiter of one host; ``async with`` it around one request.

    A refusal is a 429 or 5xx with a Retry-After above ``max_retry_after``. It may be meant for one URL: the host is
    asked more slowly, and given up only after `CLOSE_AFTER` in a row.
    """

    def __init__(self, concurrency: int, delay: float, max_retry_after: float) -> None:
        self.delay, self._max_retry_after = delay, max_retry_after
        self._slots = asyncio.Semaphore(concurrency)
        self._next, self._closed_until, self._status = 0.0, 0.0, 429
        self._refusals, self._refused, self._pace = 0, -1.0, 0.0

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        await self._slots.acquire()
        try:
            self.check_open()
            start = max(loop.time(), self._next)
            self._next = start + self.delay + self._pace
            while (wait := start - loop.time()) > 0:
                await asyncio.sleep(wait)
                self.check_open()
        except BaseException:
            self._slots.release()
            raise

    def check_open(self) -> None:
        """Raises FailedError if the host has been given up."""
        if asyncio.get_running_loop().time() < self._closed_until:
            raise FailedError("host_closed", f"HTTP {self._status}: the host keeps asking to stay away")

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()

    def answered(self) -> None:
        """Notes an answer that is no refusal."""
        self._refusals, self._pace = 0, self._pace / 2 if self._pace > FIRST_PACE else 0.0

    def retry_after(self, headers: Mapping[str, str], status: int, sent: float) -> float:
        """Returns the seconds to wait before a URL that was answered by 429 or 5xx is asked for again.

        Up to ``max_retry_after`` the whole host pauses for as long. Above, the answer to a request sent at ``sent``
        (loop time) is a refusal; the URL waits for ``max_retry_after``.
        """
        asked = parse_retry_after(headers.get("Retry-After"), datetime.now(UTC))
        now = asyncio.get_running_loop().time()
        if asked <= self._max_retry_after:
            if asked:
                self._next = max(self._next, now + asked)
            return asked
        self._pace = min(SLOWEST_PACE, max(FIRST_PACE, 2 * self._pace))
        if sent > self._refused:  # else several requests met one refusal
            self._refusals, self._refused = self._refusals + 1, now
            if self._refusals >= CLOSE_AFTER:
                self._closed_until, self._status = now + asked, status
            elif self._refusals > 1:
                pause = min(FIRST_PAUSE * 2 ** (self._refusals - 2), self._max_retry_after)
                self._next = max(self._next, now + pause)
        return self._max_retry_after


class HostLimiters:
    """The limiters of all hosts. Own hosts (mapped, or literal addresses that are not public) are not limited."""

    def __init__(self, concurrency: int, delay: float, max_retry_after: float, hosts: Hosts) -> None:
        self._concurrency, self._delay, self._max_retry_after = concurrency, delay, max_retry_after
        self._hosts = hosts
        self._known: dict[str, HostLimiter] = {}

    def get_limiter(self, url: URL, crawl_delay: float) -> HostLimiter:
        """Returns the limiter of the host of ``url``, with at least ``crawl_delay`` seconds between requests."""
        host = url.raw_host or ""
        limiter = self._known.get(host)
        if limiter is None:
            own = self._is_own(host)
            limiter = self._known[host] = HostLimiter(
                UNLIMITED if own else self._concurrency, 0.0 if own else self._delay, self._max_retry_after
            )
        limiter.delay = max(limiter.delay, crawl_delay)
        return limiter

    def _is_own(self, host: str) -> bool:
        address = self._hosts[host][0] if host in self._hosts else host
        try:
            ipaddress.ip_address(address)
        except ValueError:
            return False
        return not is_public(address)
