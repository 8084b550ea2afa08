"""The pages of a comparison and of its blind test in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.blind_test import count_choices
from tests.helpers.browser import open_browser, open_page
from tests.helpers.compared import HOSTILE, run_compare


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1440, "light")])
def test_pages_in_a_browser(runs: tuple[Path, Path], tmp_path: Path, browser: Any, width: int, scheme: str) -> None:
    """Offline, no error, no wider than the screen; a hostile prompt stays text; choices are kept and counted."""
    out, test = tmp_path / "page.html", tmp_path / "blind_test.html"
    assert run_compare(*map(str, runs), "--out", str(out), "--blind", str(test)) == 0
    problems: list[str] = []
    page = open_page(browser, width, scheme, problems)
    page.goto(f"file://{out}")
    assert page.title() == "a against b"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "B is better on" in page.inner_text("#verdict")
    assert "sample.stages.base.guidance" in page.inner_text("#differences")
    assert HOSTILE in page.inner_text("#pairs")
    before = page.locator(".pair:visible").count()
    page.check("#only")
    assert 0 < page.locator(".pair:visible").count() < before == 41
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") != scheme

    page.goto(f"file://{test}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert HOSTILE in page.inner_text("main")
    for answer, name in (("left", "0-text"), ("right", "0-image"), ("same", "1-text")):
        page.check(f"input[name='{name}'][value={answer}]")
    page.reload()
    assert page.inner_text("#progress") == "1 of 41 answered"
    assert page.is_checked("input[name='1-text'][value=same]")
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(tmp_path / "choices.json")
    page.close()
    assert problems == []
    counted = count_choices([str(tmp_path / "choices.json")])
    assert counted["names"] == [str(path) for path in runs]
    assert [sum(counted["text"][key] for key in ("a", "b")), counted["text"]["same"]] == [1, 1]
    assert sum(counted["image"][key] for key in ("a", "b")) == 1
    assert run_compare("--count", str(tmp_path / "choices.json")) == 0
