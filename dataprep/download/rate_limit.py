"""Per-host rate limiting: concurrency cap, minimum delay, Retry-After."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yarl import URL

from dataprep.download.address_guard import Hosts, is_public
from dataprep.io.failure_reasons import FailedError, http_reason

UNLIMITED = 1 << 30  # concurrency at own hosts


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
    """Rate limiter of one host; ``async with`` it around one request."""

    def __init__(self, concurrency: int, delay: float, max_retry_after: float) -> None:
        self.delay, self._max_retry_after = delay, max_retry_after
        self._slots = asyncio.Semaphore(concurrency)
        self._next, self._closed_until, self._status = 0.0, 0.0, 429

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        await self._slots.acquire()
        try:
            now = loop.time()
            self.check_open()
            start = max(now, self._next)
            self._next = start + self.delay
            if start > now:
                await asyncio.sleep(start - now)
                self.check_open()
        except BaseException:
            self._slots.release()
            raise

    def check_open(self) -> None:
        """Raises FailedError if the host asked for a pause longer than ``max_retry_after``."""
        if asyncio.get_running_loop().time() < self._closed_until:
            raise FailedError(http_reason(self._status), f"HTTP {self._status}: asked to stay away")

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()

    def retry_after(self, headers: Mapping[str, str], status: int) -> float | None:
        """Returns the seconds that a 429 or 5xx response asks to wait, and pauses the host for as long.

        None if that exceeds ``max_retry_after``: further requests to the host then fail at once, without being sent.
        """
        asked = parse_retry_after(headers.get("Retry-After"), datetime.now(UTC))
        now = asyncio.get_running_loop().time()
        if asked > self._max_retry_after:
            self._closed_until, self._status = now + asked, status
            return None
        if asked:
            self._next = max(self._next, now + asked)
        return asked


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
