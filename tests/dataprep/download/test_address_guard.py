"""The address guard."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dataprep.download.address_guard import (
    AddressGuard,
    GuardedResolver,
    Hosts,
    is_public,
    parse_address,
    parse_url,
)
from dataprep.io.failure_reasons import FailedError


def check(text: str, hosts: Hosts | None = None, **options: Any) -> None:
    AddressGuard(hosts or {}, **options).check_url(parse_url(text))


def reason(text: str, **options: Any) -> str | None:
    try:
        check(text, **options)
    except FailedError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("::127.0.0.1", False),
        ("::ffff:0:7f00:1", False),
        ("64:ff9b:1::7f00:1", False),
        ("2001:0:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("169.254.169.254", False),
        ("192.0.0.192", False),
        ("fc00::1", False),
        ("::", False),
        ("::1", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://example.com/a.jpg", None),
        ("HTTPS://EXAMPLE.com:8443/a b.jpg?x=1#y", None),
        ("http://8.8.8.8/", None),
        ("http://[2001:4860:4860::8888]/", None),
        ("file:///etc/passwd", "scheme"),
        ("ftp://example.com/x", "scheme"),
        ("data:image/png;base64,AAAA", "scheme"),
        ("javascript:alert(1)", "scheme"),
        ("gopher://127.0.0.1:25/", "scheme"),
        ("//example.com/x", "scheme"),
        ("/etc/passwd", "scheme"),
        ("", "scheme"),
        ("http://", "url"),
        ("http://[x/", "url"),
        ("http://example.com:99999/", "url"),
        ("http://example.com/" + "x" * 9000, "url"),
        ("http://user:password@example.com/", "url"),
        ("http://example.com@127.0.0.1/", "url"),
        ("http://127.0.0.1/", "address"),
        ("http://[::1]/", "address"),
        ("http://[::ffff:127.0.0.1]/", "address"),
        ("http://[::ffff:7f00:1]/", "address"),
        ("http://169.254.169.254/latest/meta-data/", "address"),
        ("http://10.0.0.1/", "address"),
        ("http://0.0.0.0/", "address"),
        ("http://2130706433/", "address"),
        ("http://0x7f000001/", "address"),
        ("http://0x7f.1/", "address"),
        ("http://0177.0.0.1/", "address"),
        ("http://012.0.0.1/", "address"),
        ("http://127.1/", "address"),
        ("http://127.0.0.1./", "address"),
        ("http://①②⑦.⓪.⓪.①/", "address"),
        ("http://999.1.1.1/", "address"),
    ],
)
def test_check_url(url: str, expected: Any) -> None:
    assert reason(url) == expected


def test_addresses_on_request_but_never_in_disguise() -> None:
    assert reason("http://127.0.0.1/", allow_private=True) is None
    assert reason("http://2130706433/", allow_private=True) == "address"
    assert reason("http://own.test/", hosts={"own.test": ("127.0.0.1", 80)}) is None


@pytest.mark.parametrize("host", ["example.com", "1e100.net", "a1.b2", "xn--bcher-kva.example", "localhost"])
def test_a_name_is_not_an_address(host: str) -> None:
    assert parse_address(host) is None


def resolve(
    monkeypatch: pytest.MonkeyPatch,
    addresses: list[str],
    host: str = "name.test",
    port: int = 80,
    hosts: Hosts | None = None,
    **options: Any,
) -> list[tuple[str, int]]:
    def lookup(host: str, port: int, *_: object) -> Any:
        return [(0, 0, 0, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with ThreadPoolExecutor(1) as lookups:
        resolver = GuardedResolver(AddressGuard(hosts or {}, **options), lookups)
        return [(entry["host"], entry["port"]) for entry in asyncio.run(resolver.resolve(host, port))]


def test_only_public_addresses_of_a_name_are_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(monkeypatch, ["10.0.0.1", "8.8.8.8", "8.8.8.8", "::1"]) == [("8.8.8.8", 80)]
    with pytest.raises(FailedError, match="not public") as caught:
        resolve(monkeypatch, ["127.0.0.1", "fd00::1"])
    assert caught.value.reason == "address"
    assert resolve(monkeypatch, ["127.0.0.1"], allow_private=True) == [("127.0.0.1", 80)]
    assert resolve(monkeypatch, [], hosts={"name.test": ("127.0.0.1", 99)}) == [("127.0.0.1", 99)]


def connect(guard: AddressGuard, address: str, port: int = 80) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        guard.make_socket((family, socket.SOCK_STREAM, 0, "", (address, port))).close()
    except PermissionError:
        return False
    return True


def test_the_socket_factory_refuses_private_addresses() -> None:
    guard = AddressGuard({"own.test": ("127.0.0.2", 1)})
    assert not connect(guard, "127.0.0.1")
    assert connect(guard, "127.0.0.2") and connect(guard, "8.8.8.8") and connect(AddressGuard({}, True), "127.0.0.1")


ALLOWED = ("10.1.0.0/16", "10.2.3.4:8080", "[fd00::1]:81", "fd01::/64", "192.168.7.7", "Images.Corp", "bücher.corp:82")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.1.255.3/", None),
        ("http://10.2.0.1/", "address"),
        ("http://10.2.3.4:8080/", None),
        ("http://10.2.3.4/", "address"),
        ("http://[fd00::1]:81/", None),
        ("http://[fd00::1]/", "address"),
        ("http://[fd01::9]:5/", None),
        ("http://192.168.7.7/", None),
        ("http://192.168.7.8/", "address"),
        ("http://127.0.0.1/", "address"),
        ("http://[::ffff:10.1.0.1]/", "address"),  # as it is written: a list has no reason for it
        ("http://167837953/", "address"),  # 10.1.1.1 in disguise
        ("http://8.8.8.8/", None),
    ],
)
def test_own_addresses_beside_the_web(url: str, expected: Any) -> None:
    assert reason(url, allow_hosts=ALLOWED) == expected
    parsed = parse_url(url)
    if parsed.raw_host != "167837953":
        assert connect(AddressGuard({}, allow_hosts=ALLOWED), parsed.raw_host or "", parsed.port or 0) == (not expected)


def test_own_names_beside_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = ["127.0.0.1", "10.9.9.9"]
    assert resolve(monkeypatch, inside, "images.corp", allow_hosts=ALLOWED) == [("127.0.0.1", 80), ("10.9.9.9", 80)]
    assert resolve(monkeypatch, inside, "xn--bcher-kva.corp", 82, allow_hosts=ALLOWED)
    for host, port in (("xn--bcher-kva.corp", 80), ("other.corp", 80), ("a.images.corp", 80), ("images.corp.evil", 80)):
        with pytest.raises(FailedError, match="not public"):
            resolve(monkeypatch, inside, host, port, allow_hosts=ALLOWED)
    # A name of the web that resolves into an allowed network is a URL into that network.
    assert resolve(monkeypatch, ["10.1.2.3", "10.9.9.9"], "web.test", allow_hosts=ALLOWED) == [("10.1.2.3", 80)]


def test_the_addresses_of_an_own_name_may_be_connected_to_once_resolved() -> None:
    guard = AddressGuard({}, allow_hosts=ALLOWED)
    assert not connect(guard, "127.0.0.1")
    assert guard.select_addresses("images.corp", 80, ["127.0.0.1"]) == ["127.0.0.1"]
    assert connect(guard, "127.0.0.1", 80) and not connect(guard, "127.0.0.1", 81)
