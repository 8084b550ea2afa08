"""The report's parts: charts as safe JSON, pictures as data URLs, examples a reason."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from run_fakes import DEAD, Made, caption, url

from dataprep import storage
from pipeline.report import charts
from pipeline.report.build import build
from pipeline.report.images import dropped_examples, kept_examples, png_url, thumbnail_url
from pipeline.store import Output, Run


def test_a_chart_cannot_end_the_script_that_holds_it() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    text = charts.to_json(charts.histogram([1.0, 2.0], hostile))
    assert "<" not in text
    assert ">" not in text
    assert json.loads(text)["layout"]["xaxis"]["title"]["text"] == hostile


def test_the_template_escapes_what_came_from_the_web() -> None:
    from jinja2 import Environment, FileSystemLoader

    import pipeline.report.build as build

    environment = Environment(loader=FileSystemLoader(build.HERE), autoescape=True)
    source = (build.HERE / "page.html.jinja").read_text()
    # Only what we made ourselves goes in unescaped.
    assert sorted(re.findall(r"(\w+) \| safe", source)) == ["css", "figure", "js", "plotly"]
    assert environment.from_string("{{ caption }}").render(caption="<script>") == "&lt;script&gt;"


@pytest.mark.parametrize("size", [(400, 100), (30, 60)])
def test_thumbnails_are_small_and_keep_their_shape(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "JPEG")
    url = thumbnail_url(buffer.getvalue())
    assert url.startswith("data:image/webp;base64,")
    assert len(url) < 1000
    assert png_url(b"x").startswith("data:image/png;base64,")


def test_losses_leave_out_rows_without_one() -> None:
    figure = charts.losses({"base": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]})
    assert list(figure.data[0].x) == [1]


def test_the_sweep_names_the_distance_that_it_shows() -> None:
    rows = [
        {"swept": "guidance", "guidance": weight, "clip_score": {"value": weight / 10}, "fd_clip": 1 / weight}
        for weight in (1.0, 4.0)
    ]
    figure = charts.sweep(rows)
    assert list(figure.data[0].text) == ["1.0", "4.0"]
    assert figure.layout.yaxis.title.text == "fd_clip"


# ---------------------------------------------------------------------------------------------- a whole run


@pytest.fixture
def run(finished_run: Made, tmp_path: Path) -> Run:
    shutil.copytree(finished_run.run.root, tmp_path / "run")
    return Run(str(tmp_path / "run"))


def test_examples_of_every_filter_with_its_reason(run: Run) -> None:
    artifacts = run.artifacts()
    groups = dropped_examples(artifacts["download"], artifacts["select"], each=3)
    assert [(group["reason"], group["count"]) for group in groups] == [
        ("downloaded: no image", 1),
        ("caption_words: too few", 1),
    ]
    failed, short = (group["items"][0] for group in groups)
    assert (failed["caption"], failed["src"]) == (caption(DEAD), None)
    assert "404" in failed["note"]
    assert (short["caption"], short["note"]) == ("short", url(5))
    assert short["src"].startswith("data:image/webp;base64,")


def test_the_selection_may_have_noted_its_examples(run: Run) -> None:
    artifacts = run.artifacts()
    select = artifacts["select"]
    noted = {"caption_words": [{"shard": 1, "key": "000010001"}, {"shard": 0, "key": "000000002"}]}
    storage.write_json(select.path("examples.json"), noted)
    outputs = [*select.manifest.outputs, Output("examples.json", 1, "")]
    select = replace(select, manifest=replace(select.manifest, outputs=outputs))
    failed, short = dropped_examples(artifacts["download"], select, each=3)
    assert failed["items"] == []
    assert [item["caption"] for item in short["items"]] == [caption(6), caption(2)]


def test_kept_examples_are_spread_over_the_list(run: Run) -> None:
    artifacts = run.artifacts()
    captions = [caption(row) for row in range(13) if row not in (DEAD, 5)]
    for count in (1, 3, 5, 11, 40):
        shown = [item["caption"] for item in kept_examples(artifacts["download"], artifacts["select"], count)]
        step = max(1, len(captions) // count)
        assert shown == captions[::step][:count]
    assert kept_examples(artifacts["download"], artifacts["select"], 0) == []


def test_the_page_of_a_run_of_before_there_was_a_card(run: Run) -> None:
    artifacts = run.artifacts()
    assert "Data card" in build(artifacts, run.record())
    del artifacts["card"]
    assert "Data card" not in build(artifacts, run.record())


HOSTILE = '"><img src=x onerror="document.title=1"><script>document.title=1</script>{{ 7*7 }}'


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1440, "light")])
def test_the_page_in_a_browser(run: Run, width: int, scheme: str, tmp_path: Path) -> None:
    """Opens offline, nothing wider than the screen; captions, reasons and licences from the web stay text."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    import pyarrow.parquet as pq
    from playwright.sync_api import sync_playwright

    artifacts = run.artifacts()
    path = artifacts["download"].files()[1]
    table = pq.read_table(path)
    captions = [HOSTILE + "x" * 300, *table["caption"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", [captions]), path)
    facts = storage.read_json(artifacts["card"].path("datacard.json"))
    facts |= {"reasons": {HOSTILE: 3}, "licences": {HOSTILE: 4}, "licence_column": HOSTILE}
    storage.write_json(artifacts["card"].path("datacard.json"), facts)
    (tmp_path / "page.html").write_text(build(artifacts, run.record()))
    troubles: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else troubles.append(r.url))
        page.goto(f"file://{tmp_path}/page.html")
        page.wait_for_selector("[data-chart=durations] .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == "imagen-ray: run"
        text = page.inner_text("#data")
        for words in ("Data card", "Rows without an image", "forgotten on request", HOSTILE):
            assert words in text, words
        assert page.locator("#funnel figure").count() == 2
        assert page.locator("#funnel img").count() == 1
        browser.close()
    assert troubles == []
