"""Fetching URLs from the open web: bounded in time, bytes, redirects and concurrency, and only from public addresses.

Error texts are short and free of ports, addresses and times, so that a rerun writes the same bytes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from pydantic import Field
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from yarl import URL

from dataprep.schema import Config

CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchConfig(Config):
    """How URLs are fetched."""

    timeout: float = Field(
        default=10.0, gt=0, description="seconds for one attempt: name, redirects and the whole body"
    )
    retries: int = Field(
        default=2, ge=0, description="further attempts after a timeout, a broken connection, 429 or 5xx"
    )
    backoff: float = Field(
        default=0.5, ge=0, description="seconds before the first retry, doubled for each further one"
    )
    concurrency: int = Field(default=64, ge=1, description="requests in flight in one process")
    max_bytes: int = Field(default=32 << 20, ge=1, description="a longer body is given up, not cut")
    max_redirects: int = Field(default=5, ge=0, description="hops followed, each checked like the first URL")
    allow_private_addresses: bool = Field(
        default=False, description="fetch from loopback, private and link-local addresses too"
    )
    user_agent: str = Field(
        default="imagen-ray/0.1", min_length=1, description="User-Agent header; name a contact in it"
    )
    obey_robots_tag: bool = Field(
        default=True, description="respect X-Robots-Tag headers that carry a directive listed below"
    )
    disallowed_directives: tuple[str, ...] = Field(
        default=("noai", "noimageai", "noindex", "noimageindex"),
        strict=False,
        description="directives that opt an image out",
    )


class Fetched(NamedTuple):
    """The body, or why there is none; exactly one of the two is None."""

    body: bytes | None
    error: str | None


class RefusedError(Exception):
    """A failure that another attempt would only repeat."""


class TransientError(Exception):
    """A failure that another attempt may not see."""


Hosts = Mapping[str, tuple[str, int]]


def is_public(address: str) -> bool:
    """Whether an IP address literal is on the public internet, seen through IPv4-in-IPv6 forms."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class GuardedResolver(AbstractResolver):
    """Resolves names, refuses what is not public, and sends the hosts of a map to a fixed (address, port)."""

    def __init__(self, hosts: Hosts, allow_private: bool) -> None:
        self._hosts, self._allow_private = hosts, allow_private
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host in self._hosts:
            address, mapped_port = self._hosts[host]
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            kind = socket.AF_INET6 if ":" in address else socket.AF_INET
            return [ResolveResult(hostname=host, host=address, port=mapped_port, family=kind, proto=0, flags=flags)]
        found = await self._system.resolve(host, port, family)
        allowed = [entry for entry in found if self._allow_private or is_public(entry["host"])]
        if not allowed:
            raise RefusedError("address not public")
        return allowed

    async def close(self) -> None:
        await self._system.close()


def check_url(url: URL, config: FetchConfig, hosts: Hosts) -> None:
    """Raises RefusedError for a scheme other than http(s), a URL without host, or a literal address that is not public.

    Names are checked when they are resolved; a literal address never reaches the resolver, so it is checked here.
    """
    if url.scheme not in ("http", "https"):
        raise RefusedError(f"scheme {url.scheme or 'missing'} not allowed")
    if not url.host:
        raise RefusedError("invalid URL")
    if url.host in hosts or config.allow_private_addresses:
        return
    try:
        public = is_public(url.host)
    except ValueError:  # a name, not an address
        return
    if not public:
        raise RefusedError("address not public")


def opted_out(values: Iterable[str], config: FetchConfig) -> bool:
    """Whether X-Robots-Tag header values carry a disallowed directive for everyone or for our user agent.

    ``[agent:] directive, directive, ...``; the product name before '/' of our User-Agent is compared.
    """
    product = config.user_agent.split("/")[0].split(" ")[0].lower()
    disallowed = {directive.lower() for directive in config.disallowed_directives}
    for value in values:
        agent = None
        for part in value.lower().split(","):
            head, colon, tail = part.partition(":")
            if colon and head.strip() not in (
                "unavailable_after",
                "max-snippet",
                "max-image-preview",
                "max-video-preview",
            ):
                agent, part = head.strip(), tail
            if part.strip() in disallowed and agent in (None, "*", product):
                return True
    return False


class _Session:
    """One pooled client session and the policy around each request."""

    def __init__(self, config: FetchConfig, hosts: Hosts) -> None:
        self.config, self.hosts = config, hosts
        self._slots = asyncio.Semaphore(config.concurrency)
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=config.concurrency, resolver=GuardedResolver(hosts, config.allow_private_addresses)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._client.close()

    async def fetch(self, url: str) -> Fetched:
        """Fetches one URL with retries; never raises for what a server or a URL did."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.config.retries + 1),
            wait=wait_exponential(multiplier=self.config.backoff, max=30),
            retry=retry_if_exception_type(TransientError),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    async with self._slots:
                        return Fetched(await self._attempt(url), None)
        except (RefusedError, TransientError) as error:
            return Fetched(None, str(error))
        raise AssertionError("tenacity ends with a result or an exception")

    async def _attempt(self, url: str) -> bytes:
        """One attempt. The one place where foreign exceptions become RefusedError or TransientError."""
        try:
            async with asyncio.timeout(self.config.timeout):
                return await self._follow(url)
        except TimeoutError as error:
            raise TransientError(f"timeout after {self.config.timeout:g} s") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise RefusedError("host name not found") from error
        except (aiohttp.InvalidURL, UnicodeError) as error:
            raise RefusedError("invalid URL") from error
        except aiohttp.ClientSSLError as error:
            raise RefusedError("TLS failure") from error
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            raise TransientError("connection failed") from error
        except aiohttp.ClientPayloadError as error:
            raise TransientError("body cut short") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise RefusedError(f"bad response: {type(error).__name__}") from error

    async def _follow(self, url: str) -> bytes:
        """GET with redirects followed by hand, so that each hop passes `check_url`."""
        try:
            target = URL(url.strip())
        except ValueError as error:
            raise RefusedError("invalid URL") from error
        for _ in range(self.config.max_redirects + 1):
            check_url(target, self.config, self.hosts)
            async with self._client.get(target, allow_redirects=False) as response:
                if response.status in REDIRECTS and "Location" in response.headers:
                    try:
                        target = target.join(URL(response.headers["Location"]))
                    except ValueError as error:
                        raise RefusedError("invalid URL in a redirect") from error
                    continue
                return await self._body(response)
        raise RefusedError(f"more than {self.config.max_redirects} redirects")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status == 429 or response.status >= 500:
            raise TransientError(f"HTTP {response.status}")
        if response.status != 200:
            raise RefusedError(f"HTTP {response.status}")
        if self.config.obey_robots_tag and opted_out(response.headers.getall("X-Robots-Tag", []), self.config):
            raise RefusedError("opted out by X-Robots-Tag")
        limit, body = self.config.max_bytes, bytearray()
        if (response.content_length or 0) > limit:
            raise RefusedError(f"body above {limit} bytes")
        async for block in response.content.iter_chunked(CHUNK):
            body += block
            if len(body) > limit:
                raise RefusedError(f"body above {limit} bytes")
        return bytes(body)


@contextmanager
def _running_session(config: FetchConfig, hosts: Hosts) -> Iterator[tuple[_Session, asyncio.AbstractEventLoop]]:
    """A session on an event loop in a thread of its own, so that fetching goes on while the caller decodes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fetch", daemon=True)
    thread.start()

    async def start() -> _Session:
        return _Session(config, hosts)

    async def stop(session: _Session) -> None:
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await session.close()

    try:
        session = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            yield session, loop
        finally:
            asyncio.run_coroutine_threadsafe(stop(session), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def fetch_all(urls: Iterable[str], config: FetchConfig, hosts: Hosts | None = None) -> Iterator[Fetched]:
    """Fetches ``urls``, yielding one `Fetched` a URL in their order.

    At most ``config.concurrency`` requests are in flight and twice as many bodies are held, whatever the length of
    ``urls``. ``hosts`` sends a host name to (address, port) and exempts it from the address guard.
    """
    remaining = iter(urls)
    with _running_session(config, hosts or {}) as (session, loop):

        def submit(count: int) -> list[Future[Fetched]]:
            return [asyncio.run_coroutine_threadsafe(session.fetch(url), loop) for url in islice(remaining, count)]

        window = deque(submit(2 * config.concurrency))
        while window:
            fetched = window.popleft().result()
            window.extend(submit(1))
            yield fetched
