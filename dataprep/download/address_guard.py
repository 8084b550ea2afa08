"""SSRF guard: only http and https URLs on the public internet may be fetched.

A name is resolved once per connection, and the connection goes to the address that was checked, which defeats DNS
rebinding; `AddressGuard.make_socket` checks the address once more when the socket is created.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dataprep.download.allowed_hosts import parse_allowed_host
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


class AddressGuard:
    """Decides which URLs may be fetched and which addresses connected to.

    Args:
        hosts: host names mapped to a fixed (address, port), allowed.
        allow_private: allows every address.
        allow_hosts: entries of `fetch.allow_hosts`, allowed though they are not on the public internet.
    """

    def __init__(self, hosts: Hosts, allow_private: bool = False, allow_hosts: Iterable[str] = ()) -> None:
        self.hosts, self.allow_private = hosts, allow_private
        self._mapped = {address for address, _ in hosts.values()}
        entries = [parse_allowed_host(text) for text in allow_hosts]
        self._names: set[tuple[str | None, int | None]] = {
            (URL.build(scheme="http", host=entry.name).raw_host, entry.port) for entry in entries if entry.name
        }
        self._networks = [(entry.network, entry.port) for entry in entries if entry.network is not None]
        self._resolved: set[tuple[str, int]] = set()  # addresses and ports of allowed names

    def check_url(self, url: URL) -> None:
        """Raises FailedError for a URL that may not be fetched, as far as is known before DNS resolution."""
        if url.scheme not in ("http", "https"):
            raise FailedError("scheme", f"scheme {url.scheme or 'missing'} not allowed"[:60])
        if not url.raw_host:
            raise FailedError("url", "invalid URL")
        if url.raw_user is not None or url.raw_password is not None:
            raise FailedError("url", "user name or password in the URL")
        if url.raw_host in self.hosts:
            return
        address = parse_address(url.raw_host)  # never reaches the resolver, so it is checked here
        if address is not None and not self.allows(address, url.port or 0):
            raise FailedError("address", "address not public")

    def allows(self, address: str, port: int) -> bool:
        """Returns whether a connection to an IP address literal is allowed."""
        if self.allow_private or is_public(address):
            return True
        if not self._networks:
            return False
        ip = ipaddress.ip_address(address.partition("%")[0])
        return any(own in (None, port) and ip in network for network, own in self._networks)

    def select_addresses(self, host: str, port: int, addresses: Iterable[str]) -> list[str]:
        """Returns those of the addresses that ``host`` resolved to which are allowed."""
        if (host, None) in self._names or (host, port) in self._names:
            chosen = list(addresses)
            self._resolved.update((address, port) for address in chosen)
            return chosen
        return [address for address in addresses if self.allows(address, port)]

    def make_socket(self, info: Any) -> socket.socket:
        """Makes a socket, for aiohttp. Raises PermissionError for an address that is not allowed."""
        family, kind, proto, _, where = info
        address, port = where[:2]
        if address not in self._mapped and (address, port) not in self._resolved and not self.allows(address, port):
            raise PermissionError("address not public")
        return socket.socket(family, kind, proto)


class GuardedResolver(AbstractResolver):
    """Resolves names, refuses addresses that are not allowed, and maps own hosts to their fixed (address, port).

    The system's resolver blocks, so it runs in the threads of ``lookups``.
    """

    def __init__(self, guard: AddressGuard, lookups: Executor) -> None:
        self._guard, self._lookups = guard, lookups

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolves ``host`` to allowed addresses. Raises FailedError if there is none, OSError for an unknown name."""
        if host in self._guard.hosts:
            address, mapped_port = self._guard.hosts[host]
            return [_make_result(host, address, mapped_port)]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._lookups, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        allowed = self._guard.select_addresses(host, port, addresses)
        if not allowed:
            raise FailedError("address", "address not public")
        return [_make_result(host, address, port) for address in allowed]

    async def close(self) -> None:
        """Does nothing: there are no resources to release."""


def _make_result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
