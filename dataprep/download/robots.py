"""Policies of sites: robots.txt (RFC 9309), X-Robots-Tag, and the TDM Reservation Protocol (W3C, May 2024).

Pure functions over file contents; `Policies` fetches a site's files once, `PolicyMemory` caches them.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from protego import Protego
from yarl import URL

from dataprep.io.failure_reasons import TRANSIENT, FailedError

ROBOTS_TXT, TDM_FILE = "/robots.txt", "/.well-known/tdmrep.json"
MAX_FILE = 512 << 10  # bytes read of either (RFC 9309, section 2.5, requires at least 500 KiB)
MAX_SITES, MAX_HELD = 20_000, 8 << 20  # limits of the cache: policies, and bytes of their files
FRESH = 24 * 3600.0  # seconds that a policy stays valid
MAX_TDM_RULES = 1000
LARGE = 32 << 10  # bytes of files above which parsing and matching, up to half a second each, leave the event loop
TAG_VALUES = ("max-snippet", "max-image-preview", "max-video-preview")  # directives with a colon, beside a date
AGENT = re.compile(r"\*|[^\s:=]*[a-z][^\s:=]*")  # a name, not what follows a colon in a date
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def is_opted_out(values: Iterable[str], product: str, disallowed: Iterable[str], now: datetime | None = None) -> bool:
    """Returns whether X-Robots-Tag values have a disallowed directive for all agents or for ``product``.

    Format: ``[agent:] directive, directive, ...``, case-insensitive. ``none`` means noindex and nofollow, and a date of
    ``unavailable_after`` that is before ``now`` means noindex (developers.google.com/search/docs/crawling-indexing/
    robots-meta-tag). A semicolon counts as a comma, and an agent with a version as the agent.
    """
    forbidden = {directive.lower() for directive in disallowed}
    if "noindex" in forbidden:
        forbidden.add("none")
    for value in values:
        agent = None
        parts = re.split("[,;]", value.lower())
        while parts:
            part = parts.pop(0).strip()
            head, colon, tail = (text.strip() for text in part.partition(":"))
            if head == "unavailable_after" and colon:
                part = "noindex" if _is_past(tail, parts, now or datetime.now(UTC)) else ""
            elif colon and head not in TAG_VALUES and AGENT.fullmatch(head):
                agent, part = head.split("/")[0], tail
                if part.startswith("unavailable_after"):
                    parts.insert(0, part)
                    continue
            if part in forbidden and agent in (None, "*", product.lower()):
                return True
    return False


def _is_past(date: str, rest: list[str], now: datetime) -> bool:
    """Returns whether a date is before ``now``; False if it is none. Takes what a comma cut off from ``rest``."""
    if date.rstrip(".")[:3] in WEEKDAYS and not any(digit in date for digit in "0123456789") and rest:
        date = f"{date[:3]}, {rest.pop(0).strip()}"
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError, TypeError, OverflowError):
            found = parse(date.upper())
            return found.replace(tzinfo=found.tzinfo or UTC) < now
    return False


def matches_pattern(pattern: str, path: str) -> bool:
    """Returns whether a path matches a robots.txt pattern: a prefix, ``*`` for anything, ``$`` for the end.

    Linear time for any number of stars, since patterns are untrusted.
    """
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    if not rest:
        return not anchored or len(path) == len(first)
    place = len(first)
    for part in rest[:-1]:
        found = path.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return path.endswith(rest[-1]) and len(path) - place >= len(rest[-1]) if anchored else rest[-1] in path[place:]


class TdmRule(NamedTuple):
    """One entry of tdmrep.json."""

    location: str
    reserved: bool


def parse_tdm(body: bytes) -> tuple[TdmRule, ...]:
    """Parses the rules of a tdmrep.json; none if it is invalid."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    rules = []
    for entry in entries[:MAX_TDM_RULES] if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("location"), str):
            rules.append(TdmRule(entry["location"], str(entry.get("tdm-reservation")).strip() == "1"))
    return tuple(rules)


def is_tdm_reserved(rules: Iterable[TdmRule], path: str) -> bool:
    """Returns the value of the longest matching location; of equally long ones, True if any reserves."""
    fitting = [(len(rule.location), rule.reserved) for rule in rules if matches_pattern(rule.location, path)]
    return max(fitting)[1] if fitting else False


class Policy(NamedTuple):
    """The policy of one site. ``closed``: why nothing may be fetched; ``size``: bytes of its files."""

    robots: Protego | None = None
    tdm: tuple[TdmRule, ...] = ()
    closed: FailedError | None = None
    size: int = 0

    def check(self, url: URL, product: str) -> None:
        """Raises FailedError if ``url`` may not be fetched."""
        if self.closed is not None:
            raise FailedError(self.closed.reason, str(self.closed))
        if self.robots is not None and not self.robots.can_fetch(str(url), product):
            raise FailedError("robots_txt", "disallowed by robots.txt")
        if self.tdm and is_tdm_reserved(self.tdm, url.raw_path_qs):
            raise FailedError("tdm", "reserved by tdmrep.json")

    async def check_aside(self, url: URL, product: str) -> None:
        """Does what `check` does, for large files in a thread, so that other requests go on."""
        if self.size > LARGE:
            await asyncio.to_thread(self.check, url, product)
        else:
            self.check(url, product)

    def delay(self, product: str) -> float:
        """Returns the Crawl-delay of robots.txt in seconds; 0 without one."""
        return float(self.robots.crawl_delay(product) or 0) if self.robots is not None else 0.0


class PolicyMemory:
    """LRU cache of policies across shards, bounded in sites and bytes; entries expire after a day (RFC 9309, 2.4)."""

    def __init__(self) -> None:
        self._known: dict[URL, tuple[float, Policy]] = {}  # (time read, policy), most recently used last
        self._held = 0

    def get(self, site: URL) -> Policy | None:
        """Returns the policy of a site; None if unknown."""
        read, policy = self._known.pop(site, (0.0, None))
        if policy is None or time.monotonic() - read > FRESH:
            self._held -= policy.size if policy is not None else 0
            return None
        self._known[site] = read, policy
        return policy

    def put(self, site: URL, policy: Policy) -> None:
        """Adds the policy of a site."""
        self._known[site] = time.monotonic(), policy
        self._held += policy.size
        while len(self._known) > 1 and (len(self._known) > MAX_SITES or self._held > MAX_HELD):
            self._held -= self._known.pop(next(iter(self._known)))[1].size

    def reopen(self) -> None:
        """Removes closed sites, which the next shard may reach again."""
        self._known = {site: known for site, known in self._known.items() if known[1].closed is None}


class Policies:
    """The policy of each site (scheme, host and port), fetched once.

    ``fetch(url, limit)`` returns (HTTP status, at most ``limit`` bytes of body) and raises FailedError. ``memory``
    caches policies across instances.
    """

    def __init__(
        self,
        fetch: Callable[[URL, int], Awaitable[tuple[int, bytes]]],
        *,
        obey_robots: bool,
        obey_tdm: bool,
        memory: PolicyMemory | None = None,
    ) -> None:
        self._fetch, self._obey_robots, self._obey_tdm = fetch, obey_robots, obey_tdm
        self.memory = memory or PolicyMemory()
        self.memory.reopen()
        self._fetching: dict[URL, asyncio.Task[Policy]] = {}

    async def get_policy(self, url: URL) -> Policy:
        """Returns the policy of the site of ``url``, fetching it if unknown."""
        if not (self._obey_robots or self._obey_tdm):
            return Policy()
        site = url.origin()
        policy = self.memory.get(site)
        if policy is not None:
            return policy
        task = self._fetching.get(site)
        if task is None:
            task = self._fetching[site] = asyncio.ensure_future(self._load(site))
        # A waiting request may be cancelled; others still need the result.
        return await asyncio.shield(task)

    async def _load(self, site: URL) -> Policy:
        try:
            policy = await self._read(site)
            self.memory.put(site, policy)
            return policy
        finally:
            del self._fetching[site]

    async def _read(self, site: URL) -> Policy:
        size, robots = 0, None
        rules: tuple[TdmRule, ...] = ()
        if self._obey_robots:
            try:
                status, body = await self._fetch(site.with_path(ROBOTS_TXT), MAX_FILE)
            except FailedError as error:
                # A site that cannot be reached is closed; a robots.txt that cannot be followed counts as missing.
                status, body = 404, b""
                if error.reason in TRANSIENT or error.reason == "tls":
                    return Policy(closed=error)
            if status >= 500:
                return Policy(closed=FailedError("robots_unreachable", f"robots.txt: HTTP {status}"))
            if status < 300 and body.strip():
                text, size = body.decode("utf-8-sig", errors="replace"), len(body)
                robots = await asyncio.to_thread(Protego.parse, text) if size > LARGE else Protego.parse(text)
        if self._obey_tdm:
            try:
                status, body = await self._fetch(site.with_path(TDM_FILE), MAX_FILE)
                rules = parse_tdm(body) if status == 200 else ()
                size += len(body) if rules else 0
            except FailedError:  # without the file there is no reservation; a header still counts
                pass
        return Policy(robots, rules, size=size)
