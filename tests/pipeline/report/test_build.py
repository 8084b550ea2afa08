"""The report of a whole run: sections from a registry, and the page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataprep.io import storage
from pipeline.report.build import REPORT, build_pages
from pipeline.report.charts import plot_durations
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.report.sections.registry import SECTIONS
from pipeline.store.run import Run
from tests.helpers.browser import open_browser, open_page


def test_section_from_outside_is_on_the_page(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collect_dummy(inputs: ReportInputs) -> SectionContent:
        return SectionContent({"names": [*inputs.artifacts, "<b>"]}, {"dummy_times": plot_durations({"x": 1.0})})

    template = tmp_path / "dummy.html.jinja"
    template.write_text("{{ ui.chart('dummy_times', 'Times') }}<p>{{ names | join(' ') }} {{ sections | length }}</p>")
    monkeypatch.setitem(SECTIONS, "dummy", ReportSection("A dummy", collect_dummy, template))
    page = build_pages(run.artifacts(), run.record())[REPORT]
    assert '<a href="#dummy">A dummy</a>' in page
    assert '<div class="chart" data-chart="dummy_times"></div>' in page
    absent = ("memorisation", "audit", "captions", "codes")  # of which this run has nothing
    assert f"report &lt;b&gt; {len(SECTIONS) - len(absent)}</p>" in page
    assert not any(f'<a href="#{name}">' in page for name in absent)
    assert '"dummy_times": {"data"' in page


def test_section_of_tables_needs_no_template(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"title": "Hosts", "columns": ("host", "#rows"), "rows": [("<b>.test", 1234)]}
    monkeypatch.setitem(SECTIONS, "dummy", ReportSection("A dummy", lambda inputs: SectionContent({"tables": [table]})))
    page = build_pages(run.artifacts(), run.record())[REPORT]
    assert "<h3>Hosts</h3>" in page and '<td>&lt;b&gt;.test</td><td class="num">1,234</td>' in page


def test_charts_of_one_name_are_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECTIONS, "again", SECTIONS["training"])
    with pytest.raises(ValueError, match="section again: chart 'loss_0' is already on the page"):
        build_pages(run.artifacts(), run.record())


HOSTILE = '"><img src=x onerror="document.title=1"><script>document.title=1</script>{{ 7*7 }}'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1440, "light")])
def test_page_in_a_browser(run: Run, browser: Any, width: int, scheme: str, tmp_path: Path) -> None:
    """Opens offline, no wider than the screen; captions, reasons and licences from the web stay text."""
    import pyarrow.parquet as pq

    artifacts = run.artifacts()
    path = artifacts["download"].files()[1]
    table = pq.read_table(path)
    captions = [HOSTILE + "x" * 300, *table["caption"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", [captions]), path)
    facts = storage.read_json(artifacts["card"].path("datacard.json"))
    facts |= {"reasons": {HOSTILE: 3}, "licences": {HOSTILE: 4}, "licence_column": HOSTILE}
    storage.write_json(artifacts["card"].path("datacard.json"), facts)
    hostile = [{"time": "2026-01-01T00:00:00.000+00:00", "event": "stage_failed", "stage": "pack", "error": HOSTILE}]
    (tmp_path / "page.html").write_text(build_pages(artifacts, run.record(), hostile)[REPORT])
    problems: list[str] = []
    page = open_page(browser, width, scheme, problems)
    page.goto(f"file://{tmp_path}/page.html")
    page.wait_for_selector("[data-chart=durations] .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == "imagen-ray: run"
    text = page.inner_text("#data")
    for words in ("Data card", "Rows without an image", "forgotten on request", HOSTILE):
        assert words in text, words
    assert HOSTILE in page.inner_text("#run")
    assert page.evaluate("document.querySelectorAll('img[onerror], main script').length") == 0
    check_controls(page, scheme)
    assert page.locator("#funnel figure").count() == 2
    assert page.locator("#funnel img").count() == 1
    page.close()
    assert problems == []


def check_controls(page: Any, scheme: str) -> None:
    """Theme, sorting and zoom, by mouse and by keys."""
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
    column = "[...document.querySelector('#run .scroll table').tBodies[0].rows].map(row => row.cells[0].textContent)"
    stages = page.evaluate(column)
    page.click("#run .scroll th:nth-child(1)")
    assert page.evaluate(column) == sorted(stages) != stages
    page.focus("#run .scroll th:nth-child(1)")
    page.keyboard.press("Enter")
    assert page.evaluate(column) == sorted(stages)[::-1]
    page.click("#samples img >> nth=0")
    assert page.evaluate("document.getElementById('zoom').open")
    assert "a red circle" in page.inner_text("#zoom p")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('zoom').open")
