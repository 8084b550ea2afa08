"""Entries of `fetch.allow_hosts`: names, addresses and networks, each with an optional port."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from typing import NamedTuple

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ENTRY = re.compile(r"(?:\[(?P<inner>[^\]]+)\]|(?P<host>[^:/\[\]\s]+))(?P<bits>/\d{1,3})?(?::(?P<port>\d{1,5}))?")
NAME = re.compile(r"[\w-]+(?:\.[\w-]+)*")


class AllowedHost(NamedTuple):
    """A name or a network, of which the other is None; an address is a network of one. ``port`` None: any."""

    name: str | None
    network: Network | None
    port: int | None


def parse_allowed_host(text: str) -> AllowedHost:
    """Parses ``host``, ``host:port``, ``network`` or ``network:port``; IPv6 with a port is written in brackets.

    Raises ValueError for anything else.
    """
    with suppress(ValueError):  # an IPv6 address without brackets has colons and no port
        return AllowedHost(None, ipaddress.ip_network(text.strip(), strict=False), None)
    found = ENTRY.fullmatch(text.strip())
    port = int(found["port"]) if found is not None and found["port"] else None
    if found is not None and (port is None or 0 < port < 1 << 16):
        host = found["inner"] or found["host"]
        with suppress(ValueError):
            return AllowedHost(None, ipaddress.ip_network(host + (found["bits"] or ""), strict=False), port)
        if found["host"] and not found["bits"] and NAME.fullmatch(host) and not _is_disguised(host):
            return AllowedHost(host.lower(), None, port)
    raise ValueError(
        f"{text!r} is no host; give a name, an address or a network, each with a port if only that one is meant: "
        "images.example, 10.1.2.3, 10.1.0.0/16, 10.1.2.3:8080, [fd00::1]:8080"
    )


def _is_disguised(host: str) -> bool:
    """Returns whether resolvers take ``host`` for an address (2130706433, 0x7f.1), which is never fetched."""
    try:
        socket.inet_aton(host)
    except (OSError, UnicodeError):
        return host.replace(".", "").isdigit()
    return True
