"""Which URLs and addresses may be asked: http and https, on the public internet alone.

A name is resolved once for a connection, and the connection goes to the address that was checked, so that a name which
changes its mind (DNS rebinding) gains nothing; `guarded_socket` looks at the address once more as the socket is made.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dataprep.reasons import FailedError

Hosts = Mapping[str, tuple[str, int]]
"""Host names that are sent to a fixed (address, port) and exempt from the guard."""

MAX_URL = 8000  # characters; servers refuse longer ones
NAT64 = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # the one part of IPv6 from which public addresses are given out
# Metadata services within space that counts as public: Oracle's is among the IETF's own addresses, Azure's anywhere.
METADATA = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))


def is_public(address: str) -> bool:
    """Whether an IP address literal is on the public internet, seen through IPv4-in-IPv6 forms."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in METADATA)


def literal_address(host: str) -> str | None:
    """``host`` where it is an IP address, None where it is a name.

    Raises FailedError for an address in disguise (2130706433, 0x7f.1, 127.1, 010.0.0.1, 127.0.0.1.), which resolvers
    understand and nobody has a reason to write.
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
    """The URL that ``text`` is; FailedError where it is none."""
    try:
        url = URL(text.strip())
        whole = len(text) <= MAX_URL and (not url.scheme or url.scheme not in ("http", "https") or bool(url.raw_host))
    except ValueError as error:
        raise FailedError("url", "invalid URL") from error
    if not whole:
        raise FailedError("url", "invalid URL")
    return url


def check_url(url: URL, hosts: Hosts, allow_private: bool) -> None:
    """Raises FailedError for a URL that may not be asked, as far as that can be told before its name is resolved."""
    if url.scheme not in ("http", "https"):
        raise FailedError("scheme", f"scheme {url.scheme or 'missing'} not allowed"[:60])
    if not url.raw_host:
        raise FailedError("url", "invalid URL")
    if url.raw_user is not None or url.raw_password is not None:
        raise FailedError("url", "user name or password in the URL")
    if url.raw_host in hosts:
        return
    address = literal_address(url.raw_host)  # never reaches the resolver, so it is checked here
    if address is not None and not allow_private and not is_public(address):
        raise FailedError("address", "address not public")


class GuardedResolver(AbstractResolver):
    """Resolves names, refuses what is not public, and sends the hosts of a map to a fixed (address, port).

    The system's resolver blocks: it is asked in the threads of ``lookups``.
    """

    def __init__(self, hosts: Hosts, allow_private: bool, lookups: Executor) -> None:
        self._hosts, self._allow_private, self._lookups = hosts, allow_private, lookups

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of ``host`` that may be connected to; FailedError where there are none, OSError for no name."""
        if host in self._hosts:
            address, mapped_port = self._hosts[host]
            return [_result(host, address, mapped_port)]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._lookups, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        allowed = [address for address in addresses if self._allow_private or is_public(address)]
        if not allowed:
            raise FailedError("address", "address not public")
        return [_result(host, address, port) for address in allowed]

    async def close(self) -> None:
        """Nothing is held."""


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)


def guarded_socket(hosts: Hosts, allow_private: bool) -> Callable[[Any], socket.socket]:
    """A socket factory for aiohttp that raises PermissionError for an address that no check above let through."""
    mapped = {address for address, _ in hosts.values()}

    def make(info: Any) -> socket.socket:
        family, kind, proto, _, where = info
        if not allow_private and where[0] not in mapped and not is_public(where[0]):
            raise PermissionError("address not public")
        return socket.socket(family, kind, proto)

    return make
