"""The summary of training content: what the run knows, and what stays open."""

from __future__ import annotations

from typing import Any

import pytest

from dataprep.card.config import CardConfig
from dataprep.card.facts import DataCounts, build_facts
from dataprep.card.training_content import NONE, OPEN, render_training_content
from dataprep.download.config import FetchConfig

FUNNEL = [
    {"filter": "min_side", "reason": "shorter side below 64 pixels", "in": 9, "dropped": 1, "kept": 8},
    {"filter": "unsafe", "reason": "unsafe above 0.5", "in": 8, "dropped": 2, "kept": 6},
]


def render(source: str = "table", funnel: list[dict[str, Any]] | None = None, **config: Any) -> str:
    counts = DataCounts(rows=3_000_000, kept=2_000_000)
    counts.hosts.update({f"host-{index:02d}.test": 100 - index for index in range(25)})
    counts.reasons.update({"robots_txt": 7, "tdm": 1})
    counts.languages.update({"en": 5})
    facts = build_facts(counts, {"": {"source": source, "path": "list|.csv"}}, CardConfig(**config))
    fetch = FetchConfig(obey_tdm=False, user_agent="bot/1 (mail@a.test)").model_dump()
    return render_training_content(facts, FUNNEL if funnel is None else funnel, fetch, tokens=20_000_000)


def read_section(text: str, number: str) -> str:
    _, _, rest = text.partition(f"### {number} ")
    return rest.split("\n##")[0]


def test_a_fetched_list_tells_its_hosts_and_opt_outs() -> None:
    text = render(creator="Zoo", contact="mail@a.test")
    assert "Zoo, mail\\@a.test" in read_section(text, "1.1")
    assert "less than 1 billion tokens" in read_section(text, "1.3")
    assert "1 million to 1 billion images" in read_section(text, "1.3")
    assert "list\\|.csv" in read_section(text, "2.1")
    crawled = read_section(text, "2.3")
    assert "bot/1 (mail\\@a.test)" in crawled and "Hosts of the kept images: 25." in crawled
    assert crawled.count(".test |") == 3  # a tenth of the hosts, rounded up
    rights = read_section(text, "3.1")
    assert "| TDM reservation protocol | not respected |" in rights and "| robots.txt | respected |" in rights
    assert "opted out: 8;" in rights
    assert "| unsafe | unsafe above 0.5 | 2 |" in read_section(text, "3.2")
    assert "min\\_side" in read_section(text, "3.3")


@pytest.mark.parametrize(("source", "open_section"), [("table", "2.1"), ("folder", "2.2"), ("webdataset", "2.6")])
def test_what_the_run_cannot_know_is_open(source: str, open_section: str) -> None:
    text = render(source, [])
    assert OPEN in read_section(text, open_section)
    assert OPEN in read_section(text, "1.1") and OPEN in read_section(text, "1.2") and OPEN in read_section(text, "3.2")


def test_rendered_images_have_no_third_party_sources() -> None:
    text = render("scenes", [])
    for section in ("2.1", "2.2", "2.3", "2.4", "2.6"):
        assert NONE in read_section(text, section)
    assert "rendered by a program" in read_section(text, "2.5")
    assert "Nothing was fetched from the web." in read_section(text, "3.1")
