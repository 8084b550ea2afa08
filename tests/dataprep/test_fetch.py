from __future__ import annotations

import time
from itertools import count

import pytest

from dataprep.fetch import FetchConfig, Fetched, fetch_all, is_public, opted_out

QUICK = FetchConfig(timeout=2.0, retries=2, backoff=0.01, concurrency=8)


def fetch(web, url, config=QUICK):
    return next(fetch_all([url], config, web.hosts))


def test_results_come_in_order_over_pooled_connections(web):
    urls = [web.put(f"/{index}", f"body {index}".encode()) for index in range(100)]
    got = list(fetch_all(iter(urls), QUICK, web.hosts))
    assert [fetched.body for fetched in got] == [f"body {index}".encode() for index in range(100)]
    assert sorted(web.asked) == sorted(f"/{index}" for index in range(100))


def test_an_endless_list_is_read_only_a_window_ahead(web):
    web.put("/x", b"x")
    taken = count()

    def urls():
        while True:
            next(taken)
            yield web.url("/x")

    stream = fetch_all(urls(), QUICK, web.hosts)
    assert [next(stream).body for _ in range(5)] == [b"x"] * 5
    stream.close()
    assert next(taken) <= 5 + 2 * QUICK.concurrency


def test_missing_page_is_asked_for_once(web):
    assert fetch(web, web.url("/missing")) == Fetched(None, "HTTP 404")
    assert web.asked == ["/missing"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_server_trouble_is_retried(web, status):
    url = web.put("/busy", b"", status)
    assert fetch(web, url) == Fetched(None, f"HTTP {status}")
    assert len(web.asked) == 3


def test_a_retry_that_succeeds(web):
    url = web.put("/late", b"", 503)
    broken = web.pages["/late"]

    def handle(request):
        web.put("/late", b"here")
        broken(request)

    web.pages["/late"] = handle
    assert fetch(web, url) == Fetched(b"here", None)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://web.test/x", "/etc/passwd", "", "http://", "http://[x/"])
def test_only_http_urls(web, url):
    body, error = fetch(web, url)
    assert body is None and error and (error == "invalid URL" or error.startswith("scheme"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "0.0.0.0"]
)
def test_private_addresses_are_refused(web, host):
    web.put("/", b"secret")
    assert fetch(web, f"http://{host}:{web.address[1]}/") == Fetched(None, "address not public")
    assert web.asked == []


def test_an_address_in_disguise_is_refused(web):
    body, error = fetch(web, f"http://2130706433:{web.address[1]}/")
    assert body is None and error in ("address not public", "invalid URL", "host name not found")


def test_private_addresses_on_request(web):
    web.put("/", b"local")
    config = QUICK.model_copy(update={"allow_private_addresses": True})
    assert fetch(web, f"http://localhost:{web.address[1]}/", config).body == b"local"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("224.0.0.1", False),
        ("100.64.0.1", False),
        ("fc00::1", False),
    ],
)
def test_is_public(address, public):
    assert is_public(address) is public


def test_redirects_are_followed_and_checked_at_each_hop(web):
    web.put("/picture", b"picture")
    assert fetch(web, web.put("/old", b"", 302, Location="/picture")).body == b"picture"
    inward = web.put("/inward", b"", 302, Location=f"http://127.0.0.1:{web.address[1]}/picture")
    assert fetch(web, inward).error == "address not public"
    assert fetch(web, web.put("/file", b"", 302, Location="file:///etc/passwd")).error == "scheme file not allowed"
    assert fetch(web, web.put("/loop", b"", 301, Location="/loop")).error == "more than 5 redirects"


def test_size_limit_with_and_without_a_stated_length(web):
    config = QUICK.model_copy(update={"max_bytes": 1000})
    assert fetch(web, web.put("/just", b"x" * 1000), config).body == b"x" * 1000
    assert fetch(web, web.put("/long", b"x" * 1001), config).error == "body above 1000 bytes"

    def endless(request):
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 10_000)
        except OSError:
            request.close_connection = True

    web.pages["/endless"] = endless
    assert fetch(web, web.url("/endless"), config).error == "body above 1000 bytes"


def test_a_dripping_server_meets_the_total_timeout(web):
    def drip(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        try:
            for _ in range(100):
                request.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        request.close_connection = True

    web.pages["/drip"] = drip
    config = FetchConfig(timeout=0.3, retries=0)
    start = time.monotonic()
    assert fetch(web, web.url("/drip"), config) == Fetched(None, "timeout after 0.3 s")
    assert time.monotonic() - start < 2


def test_a_body_cut_short_and_a_closed_port(web):
    def cut(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"x")
        request.close_connection = True

    web.pages["/cut"] = cut
    assert fetch(web, web.url("/cut")).error == "body cut short"
    assert len(web.asked) == 3
    closed = {"gone.test": ("127.0.0.1", 1)}
    assert next(fetch_all(["http://gone.test/"], QUICK, closed)) == Fetched(None, "connection failed")


def test_unknown_host(web):
    assert fetch(web, "http://no-such-name.invalid/x").error == "host name not found"


def test_opt_out_header(web):
    url = web.put("/art", b"art", X_Robots_Tag="noai")
    assert fetch(web, url) == Fetched(None, "opted out by X-Robots-Tag")
    assert len(web.asked) == 1
    assert fetch(web, url, QUICK.model_copy(update={"obey_robots_tag": False})).body == b"art"


@pytest.mark.parametrize(
    ("value", "out"),
    [
        ("noai", True),
        ("max-snippet: 10, NoImageAI", True),
        ("imagen-ray: noindex", True),
        ("*: noai", True),
        ("otherbot: nofollow, noindex", False),
        ("nofollow", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", False),
        ("", False),
    ],
)
def test_opted_out(value, out):
    assert opted_out([value], FetchConfig()) is out
