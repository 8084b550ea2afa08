"""SSRF guard: only http and https URLs on the public internet may be fetched.

A name is resolved once per connection, and the connection goes to the address that was checked, which defeats DNS
rebinding; `make_guarded_socket_factory` checks the address once more when the socket is created.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dataprep.io.failure_reasons import FailedError

Hosts = Mapping[str, tuple[str, int]]
"""Host names mapped to a fixed (address, port) and exempt from the guard."""

MAX_URL = 8000  # characters; servers refuse longer ones
NAT64 = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # the only part of IPv6 that public addresses are assigned from
# Cloud metadata services in public address space: Oracle's and Azure's.
METADATA = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))


@lru_cache(maxsize=1 << 14)  # a list names a host thousands of times
def is_public(address: str) -> bool:
    """Returns whether an IP address literal is on the public internet; also for IPv4 embedded in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in METADATA)


@lru_cache(maxsize=1 << 14)
def parse_address(host: str) -> str | None:
    """Returns ``host`` if it is an IP address, None if it is a name.

    Raises FailedError for an address in disguise (2130706433, 0x7f.1, 127.1, 010.0.0.1, 127.0.0.1.), which resolvers
    accept and no honest list contains.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
        return host
    except ValueError:
        pass
    bare = host.rstrip(".")
    try:
        socket.inet_aton(bare)
    except (OSError, UnicodeError):
        if not bare.replace(".", "").isdigit():
            return None
    raise FailedError("address", "an address in disguise")


def parse_url(text: str) -> URL:
    """Parses a URL. Raises FailedError if ``text`` is not one."""
    try:
        url = URL(text.strip())
        whole = len(text) <= MAX_URL and (not url.scheme or url.scheme not in ("http", "https") or bool(url.raw_host))
    except ValueError as error:
        raise FailedError("url", "invalid URL") from error
    if not whole:
        raise FailedError("url", "invalid URL")
    return url


def check_url(url: URL, hosts: Hosts, allow_private: bool) -> None:
    """Raises FailedError for a URL that may not be fetched, as far as is known before DNS resolution."""
    if url.scheme not in ("http", "https"):
        raise FailedError("scheme", f"scheme {url.scheme or 'missing'} not allowed"[:60])
    if not url.raw_host:
        raise FailedError("url", "invalid URL")
    if url.raw_user is not None or url.raw_password is not None:
        raise FailedError("url", "user name or password in the URL")
    if url.raw_host in hosts:
        return
    address = parse_address(url.raw_host)  # never reaches the resolver, so it is checked here
    if address is not None and not allow_private and not is_public(address):
        raise FailedError("address", "address not public")


class GuardedResolver(AbstractResolver):
    """Resolves names, refuses addresses that are not public, and maps ``hosts`` to their fixed (address, port).

    The system's resolver blocks, so it runs in the threads of ``lookups``.
    """

    def __init__(self, hosts: Hosts, allow_private: bool, lookups: Executor) -> None:
        self._hosts, self._allow_private, self._lookups = hosts, allow_private, lookups

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolves ``host`` to allowed addresses. Raises FailedError if there is none, OSError for an unknown name."""
        if host in self._hosts:
            address, mapped_port = self._hosts[host]
            return [_make_result(host, address, mapped_port)]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._lookups, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        allowed = [address for address in addresses if self._allow_private or is_public(address)]
        if not allowed:
            raise FailedError("address", "address not public")
        return [_make_result(host, address, port) for address in allowed]

    async def close(self) -> None:
        """Does nothing: there are no resources to release."""


def _make_result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)


def make_guarded_socket_factory(hosts: Hosts, allow_private: bool) -> Callable[[Any], socket.socket]:
    """Returns a socket factory for aiohttp that raises PermissionError for an address that is not allowed."""
    mapped = {address for address, _ in hosts.values()}

    def make(info: Any) -> socket.socket:
        family, kind, proto, _, where = info
        if not allow_private and where[0] not in mapped and not is_public(where[0]):
            raise PermissionError("address not public")
        return socket.socket(family, kind, proto)

    return make
