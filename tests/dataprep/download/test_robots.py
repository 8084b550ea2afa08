"""robots.txt, X-Robots-Tag and TDM reservations are parsed and respected."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from yarl import URL

from dataprep.download import robots
from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.fetch import Fetched
from dataprep.download.robots import Policies, PolicyMemory, is_opted_out, is_tdm_reserved, matches_pattern, parse_tdm
from dataprep.download.shard import download_shard
from dataprep.io.parquet import write_table
from tests.helpers.web import Web, fetch_all

QUICK = FetchConfig(timeout=2.0, retries=1, backoff=0.01)


def fetch(web: Web, path: str, **changes: Any) -> Fetched:
    return fetch_all([web.url(path)], QUICK.model_copy(update=changes), web.hosts)[0]


def site(web: Web, robots: str, path: str = "/art.jpg", status: int = 200) -> None:
    web.put("/robots.txt", robots.encode(), status)
    web.put(path, b"art")


@pytest.mark.parametrize(
    ("value", "out"),
    [
        ("noai", True),
        ("max-snippet: 10, NoImageAI", True),
        ("imagen-ray: noindex", True),
        ("*: noai", True),
        ("otherbot: nofollow, noindex", False),
        ("nofollow", False),
        ("", False),
        ("none", True),
        (" NONE ", True),
        ("nofollow, None", True),
        ("imagen-ray: none", True),
        ("IMAGEN-RAY/1.0: none", True),
        ("otherbot: none", False),
        ("otherbot: none, imagen-ray: noai", True),
        ("otherbot: none, *: nofollow", False),
        ("max-image-preview:none", False),
        ("max-image-preview: none, max-snippet:0", False),
        ("nofollow; noimageai", True),
        ("all", False),
        ("index, noarchive, nosnippet, notranslate", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", False),
        ("unavailable_after: 25 Jun 2020 15:00:00 PST", True),
        ("unavailable_after: Tue, 25 Jun 2030 15:00:00 GMT", False),
        ("unavailable_after: Thu, 25 Jun 2020 15:00:00 GMT", True),
        ("unavailable_after: Thursday, 25-Jun-20 15:00:00 GMT", True),
        ("unavailable_after: 2020-06-25T15:00:00", True),
        ("unavailable_after: 2030-06-25", False),
        ("unavailable_after: some day", False),
        ("otherbot: unavailable_after: 2020-06-25", False),
        ("imagen-ray: unavailable_after: 2020-06-25", True),
        ("unavailable_after: Tue, 25 Jun 2030 15:00:00 GMT, noai", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 GMT, noindex", True),
    ],
)
def test_is_opted_out(value: Any, out: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert is_opted_out([value], "imagen-ray", FetchConfig().disallowed_directives, now) is out


def test_opt_outs_in_several_headers() -> None:
    disallowed = FetchConfig().disallowed_directives
    assert is_opted_out(["otherbot: noindex", "none"], "imagen-ray", disallowed)
    assert not is_opted_out(["otherbot: noindex", "imagen-ray: nofollow"], "imagen-ray", disallowed)
    assert not is_opted_out(["none"], "imagen-ray", ("noai",))  # the config allows noindex


def test_large_policies_are_judged_aside(web: Web) -> None:
    site(web, "User-agent: *\n" + "Disallow: /x\n" * 4000 + "Disallow: /art\n")
    assert fetch(web, "/art.jpg").reason == "robots_txt"
    assert web.asked == []


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/", "/a", True),
        ("/a", "/abc", True),
        ("/b", "/abc", False),
        ("/a$", "/abc", False),
        ("/abc$", "/abc", True),
        ("/*.jpg", "/x/y.jpg?z", True),
        ("/*.jpg$", "/x/y.jpg?z", False),
        ("/*.jpg$", "/x/y.jpg.jpg", True),
        ("/a*b*c", "/a1c2b3", False),
        ("/a*b*c", "/a1b2c3", True),
        ("/*a$", "/", False),
        ("*", "/", True),
        ("", "/", True),
        ("/" + "*a" * 5000 + "$", "/" + "a" * 4000 + "b", False),  # and in no time
    ],
)
def test_matches_pattern(pattern: str, path: str, fits: bool) -> None:
    assert matches_pattern(pattern, path) is fits


def test_the_longest_tdm_location_decides() -> None:
    rules = parse_tdm(
        json.dumps(
            [
                {"location": "/", "tdm-reservation": 1},
                {"location": "/open/", "tdm-reservation": 0},
                {"location": "/open/", "tdm-reservation": "1"},
                {"location": "/open/free", "tdm-reservation": 0},
                {"location": 3, "tdm-reservation": 1},
                "what",
            ]
        ).encode()
    )
    assert len(rules) == 4
    said = {path: is_tdm_reserved(rules, path) for path in ("/a", "/open/a", "/open/free/a")}
    assert said == {"/a": True, "/open/a": True, "/open/free/a": False}
    assert not is_tdm_reserved((), "/a")


@pytest.mark.parametrize("body", [b"", b"{}", b"[", b"[" * 100_000, b"\xff\xfe", b'"x"'])
def test_a_broken_tdm_file_reserves_nothing(body: bytes) -> None:
    assert parse_tdm(body) == ()


def test_disallowed_urls_are_not_requested(web: Web) -> None:
    site(web, "User-agent: *\nDisallow: /private/\n\nUser-agent: imagen-ray\nDisallow: /art\n")
    web.put("/private/x.jpg", b"x")
    assert fetch(web, "/art.jpg").reason == "robots_txt"
    assert web.asked == []
    assert fetch(web, "/private/x.jpg").body == b"x"  # the group of our own name stands for us
    assert fetch(web, "/private/x.jpg", user_agent="other/1.0").reason == "robots_txt"
    assert fetch(web, "/art.jpg", obey_robots_txt=False).body == b"art"


def test_a_sites_files_are_fetched_once(web: Web) -> None:
    site(web, "")
    got = fetch_all([web.url("/art.jpg")] * 40, QUICK, web.hosts)
    assert {fetched.body for fetched in got} == {b"art"}
    assert sorted(web.asked_policies) == ["/.well-known/tdmrep.json", "/robots.txt"]
    web.asked_policies.clear()
    assert fetch(web, "/art.jpg", obey_robots_txt=False, obey_tdm=False).body == b"art"
    assert web.asked_policies == []


def test_policies_are_cached_across_shards(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "User-agent: *\nDisallow: /no\n"
    site(web, rules)
    config, memory = DownloadConfig(fetch=QUICK), PolicyMemory()
    for shard in range(3):
        write_table(pa.table({"url": [web.url(f"/no/{shard}")], "caption": [""]}), tmp_path / "l", "listing")
        counters = download_shard(tmp_path / "l", shard, tmp_path, config, web.hosts, memory=memory)
        assert counters["robots_txt"] == 1
    assert sorted(web.asked_policies) == ["/.well-known/tdmrep.json", "/robots.txt"] and web.asked == []
    monkeypatch.setattr(robots, "FRESH", -1.0)
    download_shard(tmp_path / "l", 3, tmp_path, config, web.hosts, memory=memory)
    assert len(web.asked_policies) == 4 and len(memory._known) == 1 and memory._held == len(rules)


def test_a_closed_site_is_asked_again_for_the_next_shard(web: Web, tmp_path: Path) -> None:
    memory = PolicyMemory()
    for status, reason in ((503, "robots_unreachable"), (200, "robots_txt")):
        site(web, "User-agent: *\nDisallow: /\n", status=status)
        write_table(pa.table({"url": [web.url("/a"), web.url("/b")], "caption": ["", ""]}), tmp_path / "l", "listing")
        counters = download_shard(tmp_path / "l", 0, tmp_path, DownloadConfig(fetch=QUICK), web.hosts, memory=memory)
        assert counters[reason] == 2


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429])
def test_no_robots_txt_allows_everything(web: Web, status: int) -> None:
    site(web, "User-agent: *\nDisallow: /\n", status=status)
    assert fetch(web, "/art.jpg").body == b"art"


def test_a_robots_txt_that_fails_disallows_everything_for_now(web: Web) -> None:
    site(web, "", status=503)
    got = fetch(web, "/art.jpg")
    assert (got.reason, got.error) == ("robots_unreachable", "robots.txt: HTTP 503")
    assert web.asked == [] and web.asked_policies == ["/robots.txt"] * 2


def test_robots_txt_behind_a_redirect_and_behind_the_guard(web: Web) -> None:
    web.put("/real.txt", b"User-agent: *\nDisallow: /\n")
    web.put("/robots.txt", b"", 301, Location="/real.txt")
    web.put("/art.jpg", b"art")
    assert fetch(web, "/art.jpg").reason == "robots_txt"
    web.put("/robots.txt", b"", 301, Location=f"http://127.0.0.1:{web.address[1]}/real.txt")
    web.asked.clear()
    assert fetch(web, "/art.jpg").body == b"art"  # leads nowhere that may be asked: as if there were none
    assert web.asked == ["/art.jpg"]


def test_a_redirect_follows_the_policy_of_its_target(web: Web) -> None:
    site(web, "User-agent: *\nDisallow: /art\n")
    assert fetch(web, "/go") is not None
    web.put("/go", b"", 302, Location="/art.jpg")
    web.asked.clear()
    assert fetch(web, "/go").reason == "robots_txt"
    assert web.asked == ["/go"]


def test_a_huge_robots_txt_is_read_to_a_limit(web: Web) -> None:
    site(web, "# " + "x" * 2_000_000 + "\nUser-agent: *\nDisallow: /\n")
    assert fetch(web, "/art.jpg").body == b"art"


def test_tdm_reservations(web: Web) -> None:
    web.put("/.well-known/tdmrep.json", b'[{"location": "/reserved", "tdm-reservation": 1}]')
    for path in ("/reserved.jpg", "/free.jpg"):
        web.put(path, b"art")
    web.put("/header.jpg", b"art", tdm_reservation="1")
    web.put("/zero.jpg", b"art", tdm_reservation="0")
    assert fetch(web, "/reserved.jpg").reason == "tdm" and web.asked == []
    assert fetch(web, "/header.jpg").reason == "tdm"
    assert fetch(web, "/free.jpg").body == fetch(web, "/zero.jpg").body == b"art"
    assert fetch(web, "/reserved.jpg", obey_tdm=False).body == b"art"


def test_opt_out_header(web: Web) -> None:
    web.put("/art", b"art", X_Robots_Tag="noai")
    assert fetch(web, "/art").reason == "robots_tag"
    assert web.asked == ["/art"]  # not asked again
    assert fetch(web, "/art", obey_robots_tag=False).body == b"art"


def test_the_policy_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def ask(url: URL, limit: int) -> tuple[int, bytes]:
        asked.append(url.host)
        return 200, b"User-agent: *\nDisallow: /x\n" + b"#" * 1000

    async def visit(hosts: list[str]) -> Policies:
        policies = Policies(ask, obey_robots=True, obey_tdm=False)
        for host in hosts:
            assert (await policies.get_policy(URL(f"http://{host}.test/"))).robots is not None
        return policies

    monkeypatch.setattr(robots, "MAX_HELD", 2500)
    hosts = ["a", "b", "c", "a", "d", "d", "e", "a"]
    policies = asyncio.run(visit(hosts))
    assert len(asked) < len(hosts)  # those asked for again soon were still known
    assert len(policies.memory._known) <= 3 and policies.memory._held <= 2500 + 1100
    monkeypatch.setattr(robots, "MAX_HELD", 1 << 20)
    monkeypatch.setattr(robots, "MAX_SITES", 2)
    assert len(asyncio.run(visit(hosts)).memory._known) == 2
