"""Fetching URLs from the open web: bounded in time, bytes, redirects and requests a host, from public addresses alone,
and never what a site asks not to take. docs/download.md states the whole policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeVar

import aiohttp
import uvloop
from pydantic import Field
from yarl import URL

from dataprep.guard import GuardedResolver, Hosts, check_url, guarded_socket, parse_url
from dataprep.pace import Pace, Paces
from dataprep.reasons import FailedError, http_reason
from dataprep.robots import Policies, PolicyMemory, opted_out
from dataprep.schema import Config

REDIRECTS = (301, 302, 303, 307, 308)
SNIFF = 16  # bytes that tell an image's format
SMALL_BODY, LARGE_BODIES = 1 << 20, 8  # bodies beyond 1 MiB are read a few at a time: memory stays bounded
AHEAD = 32  # rows at work, most of them waiting for their host's turn, for each request in flight
KEEP_ALIVE = 3.0  # seconds that an idle connection is kept: a list names thousands of hosts, a process has 1024 files
LOOKUPS = 32  # names resolved at a time
Result = TypeVar("Result")


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
    deadline: float = Field(
        default=60.0, gt=0, description="seconds for one URL, all its attempts: none is begun that could pass it"
    )
    max_retry_after: float = Field(
        default=20.0,
        ge=0,
        description="seconds of a server's Retry-After that are waited; asked for more, we stay away",
    )
    concurrency: int = Field(default=64, ge=1, description="requests in flight in one process")
    host_concurrency: int = Field(default=6, ge=1, description="of these to one host, of those on the public internet")
    host_delay: float = Field(
        default=0.05, ge=0, description="seconds between requests to one host, of those on the public internet"
    )
    max_crawl_delay: float = Field(
        default=2.0, ge=0, description="seconds of a robots.txt's Crawl-delay that are kept between requests at most"
    )
    max_bytes: int = Field(default=32 << 20, ge=1, description="a longer body is given up, not cut")
    max_redirects: int = Field(default=5, ge=0, description="hops followed, each checked like the first URL")
    allow_private_addresses: bool = Field(
        default=False, description="fetch from loopback, private and link-local addresses too"
    )
    user_agent: str = Field(
        default="imagen-ray/0.1", min_length=1, description="User-Agent header; name a contact in it"
    )
    obey_robots_txt: bool = Field(default=True, description="ask for no URL that the site's robots.txt disallows")
    obey_robots_tag: bool = Field(
        default=True, description="respect X-Robots-Tag headers that carry a directive listed below"
    )
    disallowed_directives: tuple[str, ...] = Field(
        default=("noai", "noimageai", "noindex", "noimageindex"),
        strict=False,
        description="directives that opt an image out",
    )
    obey_tdm: bool = Field(
        default=True, description="respect a TDM reservation, in the header and in /.well-known/tdmrep.json"
    )

    @property
    def product(self) -> str:
        """The name that robots.txt and X-Robots-Tag know us by: the user agent's before '/'."""
        return self.user_agent.split("/")[0].split(" ")[0]


class Fetched(NamedTuple):
    """The body, or the reason (a key of `REASONS`) and the words why there is none."""

    body: bytes | None
    reason: str | None = None
    error: str | None = None


class TransientError(FailedError):
    """A failure that another attempt soon may not see. ``retry_after``: the seconds that the server asks for."""

    def __init__(self, reason: str, text: str = "", retry_after: float = 0.0) -> None:
        super().__init__(reason, text)
        self.retry_after = retry_after


def explain(error: Exception, timeout: float) -> FailedError | None:
    """What an exception of the client's means; None for one that is no server's and no URL's doing."""
    if isinstance(error, FailedError):
        return error
    if isinstance(error, TimeoutError):
        return TransientError("timeout", f"timeout after {timeout:g} s")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FailedError("dns", "host name not found")
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):
        return FailedError("url", "invalid URL")
    if isinstance(error, aiohttp.ClientSSLError):
        return FailedError("tls", "TLS failure")
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PermissionError):
        return FailedError("address", "address not public")
    if isinstance(error, aiohttp.ClientConnectionError | OSError | EOFError):
        return TransientError("connection", "connection failed")
    if isinstance(error, aiohttp.ClientPayloadError) and "ContentEncoding" not in repr(error.__cause__ or error):
        return TransientError("connection", "body cut short")
    if isinstance(error, aiohttp.ClientError | ValueError):
        return FailedError("bad_response", f"bad response: {type(error).__name__}")
    return None


class _Session:
    """One pooled client and the policy around each request. Made and used inside of one event loop."""

    def __init__(
        self,
        config: FetchConfig,
        hosts: Hosts,
        accept: Callable[[bytes], bool] | None,
        lookups: Executor,
        memory: PolicyMemory | None,
    ) -> None:
        self.config, self.hosts, self.accept = config, hosts, accept
        self._slots, self._large = asyncio.Semaphore(config.concurrency), asyncio.Semaphore(LARGE_BODIES)
        self._paces = Paces(config.host_concurrency, config.host_delay, config.max_retry_after, hosts)
        self._policies = Policies(
            self._ask, obey_robots=config.obey_robots_txt, obey_tdm=config.obey_tdm, memory=memory
        )
        private = config.allow_private_addresses
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=config.concurrency,
                keepalive_timeout=KEEP_ALIVE,
                resolver=GuardedResolver(hosts, private, lookups),
                socket_factory=guarded_socket(hosts, private),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._client.close()

    async def fetch(self, text: str, held: AsyncExitStack) -> Fetched:
        """Fetches one URL with retries; never raises for what a server or a URL did.

        The request's slot stays in ``held``, to be given back when the body is worked off: so bodies do not pile up.
        """
        try:
            url = parse_url(text)
            return Fetched(await self._retried(lambda: self._image(url, held), held))
        except FailedError as error:
            await held.aclose()
            return Fetched(None, error.reason, str(error))

    async def _retried(self, attempt: Callable[[], Awaitable[Result]], held: AsyncExitStack) -> Result:
        loop, config = asyncio.get_running_loop(), self.config
        end = loop.time() + config.deadline
        for tries in range(config.retries + 1):
            try:
                return await attempt()
            except TransientError as error:
                await held.aclose()
                wait = max(error.retry_after, config.backoff * 2**tries)
                if tries == config.retries or loop.time() + wait + config.timeout > end:
                    raise
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _image(self, url: URL, held: AsyncExitStack) -> bytes:
        """One attempt: each hop passes the guard, the site's policy and its host's turn before it is asked."""
        left, loop = self.config.timeout, asyncio.get_running_loop()
        for _ in range(self.config.max_redirects + 1):
            check_url(url, self.hosts, self.config.allow_private_addresses)
            policy = await self._policies.of(url)
            policy.check(url, self.config.product)
            pace = self._paces.of(url, min(policy.delay(self.config.product), self.config.max_crawl_delay))
            async with pace:
                await held.enter_async_context(self._slots)
                pace.check_open()
                started = loop.time()
                try:
                    async with asyncio.timeout(left):
                        answer = await self._get(url, pace, held)
                except Exception as error:
                    raise explain(error, self.config.timeout) or error from error
                left -= loop.time() - started
            if isinstance(answer, bytes):
                return answer
            await held.aclose()
            url = answer
        raise FailedError("redirects", f"more than {self.config.max_redirects} redirects")

    async def _get(self, url: URL, pace: Pace, held: AsyncExitStack) -> URL | bytes:
        """One request: the body, or where it was sent on to."""
        async with self._client.get(url, allow_redirects=False) as response:
            status = response.status
            if status in REDIRECTS and "Location" in response.headers:
                return redirected(url, response.headers["Location"])
            if status == 429 or status >= 500:
                wait = pace.retry_after(response.headers, status)
                if wait is None:
                    raise FailedError(http_reason(status), f"HTTP {status}: asked to stay away")
                raise TransientError(http_reason(status), f"HTTP {status}", wait)
            if status != 200:
                raise FailedError(http_reason(status), f"HTTP {status}")
            self._check_headers(response)
            return await self._body(response, held)

    def _check_headers(self, response: aiohttp.ClientResponse) -> None:
        config, headers = self.config, response.headers
        tags = headers.getall("X-Robots-Tag", ()) if config.obey_robots_tag else ()
        if tags and opted_out(tags, config.product, config.disallowed_directives):
            raise FailedError("robots_tag", "opted out by X-Robots-Tag")
        if config.obey_tdm and headers.get("tdm-reservation", "").strip() == "1":
            raise FailedError("tdm", "reserved by a tdm-reservation header")
        if (response.content_length or 0) > config.max_bytes:
            raise FailedError("too_large", f"body above {config.max_bytes} bytes")

    async def _body(self, response: aiohttp.ClientResponse, held: AsyncExitStack) -> bytes:
        limit, body, sniffed, large = self.config.max_bytes, bytearray(), self.accept is None, False
        while block := await response.content.readany():
            body += block
            if len(body) > limit:
                raise FailedError("too_large", f"body above {limit} bytes")
            if not sniffed and len(body) >= SNIFF:
                self._sniff(body)
                sniffed = True
            if not large and len(body) > SMALL_BODY:
                await held.enter_async_context(self._large)
                large = True
        if not sniffed:
            self._sniff(body)
        return bytes(body)

    def _sniff(self, body: bytearray) -> None:
        if self.accept is not None and not self.accept(bytes(body[:SNIFF])):
            raise FailedError("not_image", "not an image of a supported format")

    async def _ask(self, url: URL, limit: int) -> tuple[int, bytes]:
        """A site's policy file: (status, at most ``limit`` bytes), behind the same guard, retried as an image is."""
        statuses = []

        async def attempt() -> tuple[int, bytes]:
            status, body = await self._small(url, limit)
            statuses.append(status)
            if status >= 500:
                raise TransientError("http_5xx")
            return status, body

        try:
            return await self._retried(attempt, AsyncExitStack())
        except TransientError as error:
            if error.reason == "http_5xx":
                return statuses[-1], b""
            raise

    async def _small(self, url: URL, limit: int) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self.config.timeout):
                for _ in range(self.config.max_redirects + 1):
                    check_url(url, self.hosts, self.config.allow_private_addresses)
                    async with self._slots, self._client.get(url, allow_redirects=False) as response:
                        if response.status in REDIRECTS and "Location" in response.headers:
                            url = redirected(url, response.headers["Location"])
                            continue
                        body = bytearray()
                        while len(body) < limit and (block := await response.content.readany()):
                            body += block
                        return response.status, bytes(body[:limit])
        except Exception as error:
            raise explain(error, self.config.timeout) or error from error
        raise FailedError("redirects")


def redirected(url: URL, location: str) -> URL:
    """Where a Location header leads to from ``url``; FailedError where that is no URL."""
    try:
        return url.join(parse_url(location))
    except ValueError as error:
        raise FailedError("url", "invalid URL in a redirect") from error


def fetch_each(
    urls: Iterable[str],
    store: Callable[[int, Result], None],
    work: Callable[[Fetched], Result],
    config: FetchConfig,
    hosts: Hosts | None = None,
    *,
    accept: Callable[[bytes], bool] | None = None,
    threads: int = 1,
    memory: PolicyMemory | None = None,
) -> None:
    """Fetches ``urls`` and calls ``store(index, work(fetched))`` for each, in the order in which they get done.

    Args:
        work: called with each `Fetched`; in one of ``threads`` threads, beside the fetching, where there is a body.
        hosts: sends a host name to (address, port) and exempts it from the address guard.
        accept: looks at a body's first bytes; where it says no, the rest is not read (reason ``not_image``).
        memory: what sites allow, as known from calls before; takes in what is asked for now.

    However long ``urls`` is, ``config.concurrency`` requests are in flight, as many bodies are held, and a bounded
    number of rows is at work.
    """

    async def main() -> None:
        loop = asyncio.get_running_loop()
        session = _Session(config, hosts or {}, accept, lookups, memory)
        ahead = asyncio.Semaphore(AHEAD * config.concurrency)

        async def one(index: int, url: str) -> None:
            try:
                async with AsyncExitStack() as held:
                    fetched = await session.fetch(url, held)
                    done = work(fetched) if fetched.body is None else await loop.run_in_executor(pool, work, fetched)
                store(index, done)
            finally:
                ahead.release()

        try:
            async with asyncio.TaskGroup() as rows:
                for index, url in enumerate(urls):
                    await ahead.acquire()
                    rows.create_task(one(index, url))
        except BaseExceptionGroup as group:  # what went wrong first, as it is; the other rows were cancelled for it
            raise group.exceptions[0] from None
        finally:
            await session.close()

    pool, lookups = ThreadPoolExecutor(threads), ThreadPoolExecutor(LOOKUPS)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        lookups.shutdown(wait=False, cancel_futures=True)  # a lookup that hangs is not waited for


def fetch_all(urls: Iterable[str], config: FetchConfig, hosts: Hosts | None = None) -> list[Fetched]:
    """Fetches ``urls``; one `Fetched` a URL, in their order."""
    found: dict[int, Fetched] = {}
    fetch_each(urls, found.__setitem__, lambda fetched: fetched, config, hosts)
    return [found[index] for index in range(len(found))]
