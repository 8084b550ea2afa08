"""What a site allows: robots.txt (RFC 9309), X-Robots-Tag, and the TDM Reservation Protocol (W3C, May 2024).

Pure functions over what was fetched, and `Policies`, which fetches a site's files once; `PolicyMemory` keeps them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from protego import Protego
from yarl import URL

from dataprep.reasons import TRANSIENT, FailedError

ROBOTS_TXT, TDM_FILE = "/robots.txt", "/.well-known/tdmrep.json"
MAX_FILE = 512 << 10  # bytes of either that are read (RFC 9309, section 2.5, asks for 500 KiB at least)
MAX_SITES, MAX_HELD = 20_000, 8 << 20  # policies remembered at a time, and bytes of the files they were parsed from
FRESH = 24 * 3600.0  # seconds that a policy is believed
MAX_TDM_RULES = 1000
TAG_VALUES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # directives with a colon


def opted_out(values: Iterable[str], product: str, disallowed: Iterable[str]) -> bool:
    """Whether X-Robots-Tag header values carry a disallowed directive for everyone or for ``product``.

    ``[agent:] directive, directive, ...``; names are compared without regard to case.
    """
    forbidden = {directive.lower() for directive in disallowed}
    for value in values:
        agent = None
        for part in value.lower().split(","):
            head, colon, tail = part.partition(":")
            if colon and head.strip() not in TAG_VALUES:
                agent, part = head.strip(), tail
            if part.strip() in forbidden and agent in (None, "*", product.lower()):
                return True
    return False


def matches(pattern: str, path: str) -> bool:
    """Whether a path pattern of robots.txt's kind fits: a prefix, ``*`` for anything, ``$`` for the end.

    Linear in both, whatever the number of stars: patterns come from strangers.
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
    """The rules of a tdmrep.json; none where it is not one."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    rules = []
    for entry in entries[:MAX_TDM_RULES] if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("location"), str):
            rules.append(TdmRule(entry["location"], str(entry.get("tdm-reservation")).strip() == "1"))
    return tuple(rules)


def tdm_reserved(rules: Iterable[TdmRule], path: str) -> bool:
    """What the longest location that fits says; of two as long, the one that reserves."""
    fitting = [(len(rule.location), rule.reserved) for rule in rules if matches(rule.location, path)]
    return max(fitting)[1] if fitting else False


class Policy(NamedTuple):
    """What one site allows. ``closed``: why nothing may be asked there; ``size``: bytes that it was read from."""

    robots: Protego | None = None
    tdm: tuple[TdmRule, ...] = ()
    closed: FailedError | None = None
    size: int = 0

    def check(self, url: URL, product: str) -> None:
        """Raises FailedError where ``url`` may not be asked for."""
        if self.closed is not None:
            raise FailedError(self.closed.reason, str(self.closed))
        if self.robots is not None and not self.robots.can_fetch(str(url), product):
            raise FailedError("robots_txt", "disallowed by robots.txt")
        if self.tdm and tdm_reserved(self.tdm, url.raw_path_qs):
            raise FailedError("tdm", "reserved by tdmrep.json")

    def delay(self, product: str) -> float:
        """Seconds between requests that robots.txt asks for; 0 where it does not."""
        return float(self.robots.crawl_delay(product) or 0) if self.robots is not None else 0.0


class PolicyMemory:
    """Policies of sites that were asked for already, so that the next shard need not ask again.

    Bounded in sites and bytes, the least recently used go first; nothing is believed for more than a day (RFC 9309,
    section 2.4).
    """

    def __init__(self) -> None:
        self._known: dict[URL, tuple[float, Policy]] = {}  # when it was read; the most recently used stands last
        self._held = 0

    def get(self, site: URL) -> Policy | None:
        """The policy of a site; None where it is not known."""
        read, policy = self._known.pop(site, (0.0, None))
        if policy is None or time.monotonic() - read > FRESH:
            self._held -= policy.size if policy is not None else 0
            return None
        self._known[site] = read, policy
        return policy

    def put(self, site: URL, policy: Policy) -> None:
        """Remembers the policy of a site that was not known."""
        self._known[site] = time.monotonic(), policy
        self._held += policy.size
        while len(self._known) > 1 and (len(self._known) > MAX_SITES or self._held > MAX_HELD):
            self._held -= self._known.pop(next(iter(self._known)))[1].size

    def reopen(self) -> None:
        """Forgets the sites that were closed: by the next shard they may be reached again."""
        self._known = {site: known for site, known in self._known.items() if known[1].closed is None}


class Policies:
    """The policy of each site (scheme, host and port), asked for once.

    ``ask(url, limit)`` gives (HTTP status, at most ``limit`` bytes of body) and raises FailedError. ``memory`` may hold
    what was asked for before, and takes in what is asked for now.
    """

    def __init__(
        self,
        ask: Callable[[URL, int], Awaitable[tuple[int, bytes]]],
        *,
        obey_robots: bool,
        obey_tdm: bool,
        memory: PolicyMemory | None = None,
    ) -> None:
        self._ask, self._obey_robots, self._obey_tdm = ask, obey_robots, obey_tdm
        self.memory = memory or PolicyMemory()
        self.memory.reopen()
        self._asking: dict[URL, asyncio.Task[Policy]] = {}

    async def of(self, url: URL) -> Policy:
        """The policy of the site of ``url``."""
        if not (self._obey_robots or self._obey_tdm):
            return Policy()
        site = url.origin()
        policy = self.memory.get(site)
        if policy is not None:
            return policy
        task = self._asking.get(site)
        if task is None:
            task = self._asking[site] = asyncio.ensure_future(self._load(site))
        # One that waits may run out of time; the others still want the answer.
        return await asyncio.shield(task)

    async def _load(self, site: URL) -> Policy:
        try:
            policy = await self._read(site)
            self.memory.put(site, policy)
            return policy
        finally:
            del self._asking[site]

    async def _read(self, site: URL) -> Policy:
        size, robots = 0, None
        rules: tuple[TdmRule, ...] = ()
        if self._obey_robots:
            try:
                status, body = await self._ask(site.with_path(ROBOTS_TXT), MAX_FILE)
            except FailedError as error:
                # A site that cannot be reached is closed; one whose robots.txt leads astray has none.
                status, body = 404, b""
                if error.reason in TRANSIENT or error.reason == "tls":
                    return Policy(closed=error)
            if status >= 500:
                return Policy(closed=FailedError("robots_unreachable", f"robots.txt: HTTP {status}"))
            if status < 300 and body.strip():
                robots, size = Protego.parse(body.decode("utf-8-sig", errors="replace")), len(body)
        if self._obey_tdm:
            try:
                status, body = await self._ask(site.with_path(TDM_FILE), MAX_FILE)
                rules = parse_tdm(body) if status == 200 else ()
                size += len(body) if rules else 0
            except FailedError:  # no file, no reservation; a header still counts
                pass
        return Policy(robots, rules, size=size)
