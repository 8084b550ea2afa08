"""Fetches URLs from the open web, with limits on time, bytes, redirects and requests per host, from public addresses
only, and respecting opt-outs. docs/download.md describes the policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeVar

import aiohttp
import uvloop
from yarl import URL

from dataprep.download.address_guard import AddressGuard, GuardedResolver, Hosts, parse_url
from dataprep.download.config import FetchConfig
from dataprep.download.connection import GuardedConnector
from dataprep.download.rate_limit import HostLimiter, HostLimiters
from dataprep.download.robots import Policies, PolicyMemory, is_opted_out
from dataprep.io.failure_reasons import FailedError, http_reason

REDIRECTS = (301, 302, 303, 307, 308)
SNIFF = 16  # bytes that identify an image format
SMALL_BODY, LARGE_BODIES = 1 << 20, 8  # bodies above 1 MiB are read a few at a time, to bound memory
AHEAD = 32  # rows in progress per request in flight; most of them wait for their host
KEEP_ALIVE = 3.0  # seconds: a list names thousands of hosts, a process may have 1024 files open
LOOKUPS = 32  # concurrent DNS lookups
Result = TypeVar("Result")


class Fetched(NamedTuple):
    """A body, or the reason (a key of `REASONS`) and a message why there is none."""

    body: bytes | None
    reason: str | None = None
    error: str | None = None


class TransientError(FailedError):
    """A failure that an immediate retry may not have. ``retry_after``: seconds that the server asks to wait."""

    def __init__(self, reason: str, text: str = "", retry_after: float = 0.0) -> None:
        super().__init__(reason, text)
        self.retry_after = retry_after


def explain_error(error: Exception, timeout: float) -> FailedError | None:
    """Maps an exception of the HTTP client to a failure; None if neither server nor URL caused it."""
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


class _Held(AsyncExitStack):
    """The slots that a row holds, and the seconds that its requests have taken."""

    def __init__(self) -> None:
        super().__init__()
        self.active = 0.0


class _FetchSession:
    """One pooled client and the policy around each request; bound to one event loop."""

    def __init__(
        self,
        config: FetchConfig,
        hosts: Hosts,
        accept: Callable[[bytes], bool] | None,
        lookups: Executor,
        memory: PolicyMemory | None,
    ) -> None:
        self.config, self.accept = config, accept
        self._guard = AddressGuard(hosts, config.allow_private_addresses, config.allow_hosts)
        self._slots, self._large = asyncio.Semaphore(config.concurrency), asyncio.Semaphore(LARGE_BODIES)
        self._limiters = HostLimiters(config.host_concurrency, config.host_delay, config.max_retry_after, hosts)
        self._policies = Policies(
            self._fetch_policy, obey_robots=config.obey_robots_txt, obey_tdm=config.obey_tdm, memory=memory
        )
        self._client = aiohttp.ClientSession(
            connector=GuardedConnector(
                limit=config.concurrency,
                keepalive_timeout=KEEP_ALIVE,
                resolver=GuardedResolver(self._guard, lookups),
                socket_factory=self._guard.make_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._client.close()

    async def fetch(self, text: str, held: _Held) -> Fetched:
        """Fetches one URL with retries; never raises for a failure of server or URL.

        The request's slot stays in ``held`` until the body has been processed, so that bodies do not pile up.
        """
        try:
            url = parse_url(text)
            return Fetched(await self._retry(lambda: self._fetch_image(url, held), held))
        except FailedError as error:
            await held.aclose()
            return Fetched(None, error.reason, str(error))

    async def _retry(self, attempt: Callable[[], Awaitable[Result]], held: _Held) -> Result:
        config, waited = self.config, 0.0
        refused: TransientError | None = None
        for tries in range(config.retries + 1):
            try:
                return await attempt()
            except TransientError as error:
                refused = error
                await held.aclose()
                wait = max(error.retry_after, config.backoff * 2**tries)
                waited += wait
                if tries == config.retries or held.active + waited + config.timeout > config.deadline:
                    raise
                await asyncio.sleep(wait)
            except FailedError as error:
                if error.reason == "host_closed" and refused is not None:  # it was requested, before the host closed
                    raise refused from None
                raise
        raise AssertionError("the last attempt returns or raises")

    async def _fetch_image(self, url: URL, held: _Held) -> bytes:
        """Makes one attempt: each hop passes the address guard, the site's policy and its host's rate limit."""
        left, loop = self.config.timeout, asyncio.get_running_loop()
        for _ in range(self.config.max_redirects + 1):
            self._guard.check_url(url)
            policy = await self._policies.get_policy(url)
            await policy.check_aside(url, self.config.product)
            limiter = self._limiters.get_limiter(
                url, min(policy.delay(self.config.product), self.config.max_crawl_delay)
            )
            async with limiter:
                await held.enter_async_context(self._slots)
                limiter.check_open()
                started = loop.time()
                try:
                    async with asyncio.timeout(left):
                        answer = await self._request(url, limiter, held)
                except Exception as error:
                    raise explain_error(error, self.config.timeout) or error from error
                finally:
                    held.active += loop.time() - started
                left -= loop.time() - started
            if isinstance(answer, bytes):
                return answer
            await held.aclose()
            url = answer
        raise FailedError("redirects", f"more than {self.config.max_redirects} redirects")

    async def _request(self, url: URL, limiter: HostLimiter, held: _Held) -> URL | bytes:
        """Makes one request; returns the body, or the URL of a redirect."""
        sent = asyncio.get_running_loop().time()
        async with self._client.get(url, allow_redirects=False) as response:
            status = response.status
            if status != 429 and status < 500:
                limiter.answered()
            if status in REDIRECTS and "Location" in response.headers:
                return resolve_redirect(url, response.headers["Location"])
            if status == 429 or status >= 500:
                wait = limiter.retry_after(response.headers, status, sent)
                raise TransientError(http_reason(status), f"HTTP {status}", wait)
            if status != 200:
                raise FailedError(http_reason(status), f"HTTP {status}")
            self._check_headers(response)
            return await self._read_body(response, held)

    def _check_headers(self, response: aiohttp.ClientResponse) -> None:
        config, headers = self.config, response.headers
        tags = headers.getall("X-Robots-Tag", ()) if config.obey_robots_tag else ()
        if tags and is_opted_out(tags, config.product, config.disallowed_directives):
            raise FailedError("robots_tag", "opted out by X-Robots-Tag")
        if config.obey_tdm and headers.get("tdm-reservation", "").strip() == "1":
            raise FailedError("tdm", "reserved by a tdm-reservation header")
        if (response.content_length or 0) > config.max_bytes:
            raise FailedError("too_large", f"body above {config.max_bytes} bytes")

    async def _read_body(self, response: aiohttp.ClientResponse, held: _Held) -> bytes:
        limit, body, sniffed, large = self.config.max_bytes, bytearray(), self.accept is None, False
        while block := await response.content.readany():
            body += block
            if len(body) > limit:
                raise FailedError("too_large", f"body above {limit} bytes")
            if not sniffed and len(body) >= SNIFF:
                self._check_format(body)
                sniffed = True
            if not large and len(body) > SMALL_BODY:
                await held.enter_async_context(self._large)
                large = True
        if not sniffed:
            self._check_format(body)
        return bytes(body)

    def _check_format(self, body: bytearray) -> None:
        if self.accept is not None and not self.accept(bytes(body[:SNIFF])):
            raise FailedError("not_image", "not an image of a supported format")

    async def _fetch_policy(self, url: URL, limit: int) -> tuple[int, bytes]:
        """Fetches a policy file behind the same guard and retries; returns (status, at most ``limit`` bytes)."""
        statuses, held, loop = [], _Held(), asyncio.get_running_loop()

        async def attempt() -> tuple[int, bytes]:
            started = loop.time()
            try:
                status, body = await self._request_policy(url, limit)
            finally:
                held.active += loop.time() - started
            statuses.append(status)
            if status >= 500:
                raise TransientError("http_5xx")
            return status, body

        try:
            return await self._retry(attempt, held)
        except TransientError as error:
            if error.reason == "http_5xx":
                return statuses[-1], b""
            raise

    async def _request_policy(self, url: URL, limit: int) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self.config.timeout):
                for _ in range(self.config.max_redirects + 1):
                    self._guard.check_url(url)
                    async with self._slots, self._client.get(url, allow_redirects=False) as response:
                        if response.status in REDIRECTS and "Location" in response.headers:
                            url = resolve_redirect(url, response.headers["Location"])
                            continue
                        body = bytearray()
                        while len(body) < limit and (block := await response.content.readany()):
                            body += block
                        return response.status, bytes(body[:limit])
        except Exception as error:
            raise explain_error(error, self.config.timeout) or error from error
        raise FailedError("redirects")


def resolve_redirect(url: URL, location: str) -> URL:
    """Resolves a Location header against ``url``. Raises FailedError if it is not a URL."""
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
    """Fetches ``urls`` and calls ``store(index, work(fetched))`` for each, in order of completion.

    Requests in flight, bodies in memory and rows in progress are bounded for any number of ``urls``.

    Args:
        work: called with each `Fetched`, in one of ``threads`` threads if there is a body.
        hosts: maps a host name to (address, port) and exempts it from the address guard.
        accept: judges the first bytes of a body; if False, the rest is not read (reason ``not_image``).
        memory: policies of sites known from earlier calls; updated with those fetched now.
    """

    async def main() -> None:
        loop = asyncio.get_running_loop()
        session = _FetchSession(config, hosts or {}, accept, lookups, memory)
        ahead = asyncio.Semaphore(AHEAD * config.concurrency)

        async def one(index: int, url: str) -> None:
            try:
                async with _Held() as held:
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
        except BaseExceptionGroup as group:  # raise the first error itself; it cancelled the other rows
            raise group.exceptions[0] from None
        finally:
            await session.close()

    pool, lookups = ThreadPoolExecutor(threads), ThreadPoolExecutor(LOOKUPS)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        lookups.shutdown(wait=False, cancel_futures=True)  # do not wait for a hanging lookup
