"""Turns at a host: so many requests at a time, so long between two, and none while it asked to be left alone."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yarl import URL

from dataprep.guard import Hosts, is_public
from dataprep.reasons import FailedError, http_reason

FREE = 1 << 30  # turns at a time where nobody has to be spared


def seconds(value: str | None, now: datetime) -> float:
    """What a Retry-After header asks for, in seconds from ``now`` (UTC): a number or a date; 0 where it is neither."""
    if value is None:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # a year, a day or an offset of twenty digits
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


class Pace:
    """The turns at one host; an async context manager is one turn."""

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
        """Raises FailedError where the host asked to be left alone for longer than is ever waited."""
        if asyncio.get_running_loop().time() < self._closed_until:
            raise FailedError(http_reason(self._status), f"HTTP {self._status}: asked to stay away")

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()

    def retry_after(self, headers: Mapping[str, str], status: int) -> float | None:
        """Seconds that an answer of 429 or 5xx asks to wait; the whole host is left alone for as long.

        None where that is more than is ever waited: then every further row of the host fails at once and unasked.
        """
        asked = seconds(headers.get("Retry-After"), datetime.now(UTC))
        now = asyncio.get_running_loop().time()
        if asked > self._max_retry_after:
            self._closed_until, self._status = now + asked, status
            return None
        if asked:
            self._next = max(self._next, now + asked)
        return asked


class Paces:
    """The turns of every host. Hosts of one's own (mapped, or literal addresses that are not public) are not spared."""

    def __init__(self, concurrency: int, delay: float, max_retry_after: float, hosts: Hosts) -> None:
        self._concurrency, self._delay, self._max_retry_after = concurrency, delay, max_retry_after
        self._hosts = hosts
        self._known: dict[str, Pace] = {}

    def of(self, url: URL, crawl_delay: float) -> Pace:
        """The turns at the host of ``url``, whose robots.txt asks for ``crawl_delay`` seconds between two."""
        host = url.raw_host or ""
        pace = self._known.get(host)
        if pace is None:
            own = self._own(host)
            pace = self._known[host] = Pace(
                FREE if own else self._concurrency, 0.0 if own else self._delay, self._max_retry_after
            )
        pace.delay = max(pace.delay, crawl_delay)
        return pace

    def _own(self, host: str) -> bool:
        address = self._hosts[host][0] if host in self._hosts else host
        try:
            ipaddress.ip_address(address)
        except ValueError:
            return False
        return not is_public(address)
