"""The report's parts: charts as safe JSON, pictures as data URLs, examples a reason."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from run_fakes import DEAD, Made, caption, url

from dataprep import storage
from dataprep.schema import read_table, write_table
from pipeline.report import build, charts
from pipeline.report.build import MARKDOWN, REPORT, pages
from pipeline.report.duplicates import clusters
from pipeline.report.images import dropped_examples, kept_examples, lossless_url, png_url, thumbnail_url
from pipeline.report.learning import grids, smoothed
from pipeline.report.lineage import duration, graph, troubles
from pipeline.report.spread import BINS, Spread
from pipeline.report.summary import cell
from pipeline.store import Artifact, Manifest, Output, Run


def test_a_chart_cannot_end_the_script_that_holds_it() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    text = charts.to_json(
        charts.spread({"left": [0], "width": 1, "last": 0, "unit": hostile, "kept": [1], "dropped": [0]})
    )
    assert "<" not in text
    assert ">" not in text
    assert json.loads(text)["layout"]["xaxis"]["title"]["text"] == hostile


def test_the_templates_escape_what_came_from_the_web() -> None:
    environment = Environment(loader=FileSystemLoader(build.HERE), autoescape=True)
    for name in environment.list_templates(filter_func=lambda name: name.endswith(".html.jinja")):
        source = (build.HERE / name).read_text()
        # Only what we made ourselves goes in unescaped.
        own = {"page.html.jinja": ["css", "figure", "js", "plotly"], "compare.html.jinja": ["css"]}
        assert sorted(re.findall(r"(\w+) \| safe", source)) == (own | {"blind.html.jinja": ["css"]}).get(name, []), name
    assert environment.from_string("{{ caption }}").render(caption="<script>") == "&lt;script&gt;"


def test_a_cell_of_markdown_shows_text_as_it_is() -> None:
    assert cell("a | b\n<img src=x> [c](d) @e `f` a_b") == "a \\| b \\<img src=x\\> \\[c\\](d) \\@e \\`f\\` a\\_b"


@pytest.mark.parametrize("size", [(400, 100), (30, 60)])
def test_thumbnails_are_small_and_keep_their_shape(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "JPEG")
    url = thumbnail_url(buffer.getvalue())
    assert url.startswith("data:image/webp;base64,")
    assert len(url) < 1000
    assert png_url(b"x").startswith("data:image/png;base64,")
    assert np.asarray(decoded(lossless_url(buffer.getvalue()))).shape == (*size[::-1], 3)


# ---------------------------------------------------------------------------------------------- charts


def test_losses_leave_out_rows_without_one() -> None:
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0, "validation_loss": 1.5}]
    assert smoothed(log) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": 1.0}]
    figure = charts.loss(smoothed(log), log)
    assert [list(trace.x) for trace in figure.data] == [[1, 3], [3]]
    assert len(smoothed([{"step": step, "loss": 1.0} for step in range(100_000)])) <= 201


def point(swept: str, sampler: str = "ddim", steps: int = 8, guidance: float = 2.0) -> dict[str, Any]:
    score = {"value": guidance / 10, "low": guidance / 11, "high": guidance / 9}
    row = {"swept": swept, "sampler": sampler, "steps": steps, "guidance": guidance, "clip_score": score}
    return row | {"stage": "base", "accuracy": 0.5, "fd_clip": 1 / steps, "kid_clip": 0.0}


def test_the_sweep_names_the_distance_that_it_shows() -> None:
    figure = charts.guidance([point("guidance", guidance=weight) for weight in (1.0, 4.0)])
    assert list(figure.data[0].text) == ["1", "4"]
    assert figure.layout.yaxis.title.text == "fd_clip (lower is better)"
    curves = charts.by_steps([point("steps", name, steps) for name in ("ddim", "ddpm") for steps in (8, 2)])
    assert [(trace.name, list(trace.x)) for trace in curves.data[::2]] == [("ddim", [2, 8]), ("ddpm", [2, 8])]
    assert list(curves.data[0].y) == [1 / 2, 1 / 8]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 10**7), st.booleans()), min_size=1, max_size=60))
def test_bins_hold_every_row_and_are_few(rows: list[tuple[int, bool]]) -> None:
    values, keep = (np.asarray(part) for part in zip(*rows, strict=True))
    spread = Spread("x", "y", 1)
    for half in (slice(0, 9), slice(9, None)):  # shard by shard
        spread.add(values[half].astype(float), keep[half].astype(bool))
    bins = spread.bins()
    assert bins is not None
    assert (sum(bins["kept"]), sum(bins["dropped"])) == (keep.sum(), (~keep.astype(bool)).sum())
    assert len(bins["left"]) == len(bins["kept"]) <= BINS + 1
    assert all(b - a == pytest.approx(bins["width"]) for a, b in pairwise(bins["left"]))


def test_bins_of_shares_and_of_nothing() -> None:
    spread = Spread("x", "cosine", 0.01)
    assert spread.bins() is None
    spread.add(np.asarray([np.nan]), np.ones(1, bool))
    assert spread.bins() is None
    spread.add(np.asarray([-0.2, 0.3, 0.304, np.nan]), np.asarray([False, True, True, True]))
    bins = spread.bins()
    assert bins is not None
    assert bins["left"][0] == -0.2
    assert (bins["kept"][-1], bins["dropped"][0], bins["last"]) == (2, 1, 0.3)


# ---------------------------------------------------------------------------------------------- lineage


def made_of(**inputs: tuple[str, ...]) -> dict[str, Artifact]:
    found = {}
    for name, sources in inputs.items():
        stage = name.replace("_", ".")
        made = {source: source for source in sources}
        found[stage] = Artifact("/x", Manifest(stage, stage, made, {}, [], {"rows": 10**6}, 100.0, {}))
    return found


def test_the_graph_goes_down_and_leaves_out_what_a_longer_way_stands_for() -> None:
    data: dict[str, tuple[str, ...]] = {"listing": (), "download": ("listing",), "annotate": ("download",)}
    judged: dict[str, tuple[str, ...]] = {"clip": ("download",), "score": ("clip",)}
    joined = {"select": ("download", "annotate", "score"), "report": ("listing", "select")}
    drawn = graph(made_of(**data, **judged, **joined))
    y = {node["stage"]: node["y"] for node in drawn["nodes"]}
    assert y["listing"] < y["download"] < y["clip"] < y["score"] < y["select"] < y["report"]
    assert len(drawn["paths"]) == 7  # not download to select, nor listing to report
    assert drawn["nodes"][0]["note"] == "1.00 M rows · 100.0 s"
    boxes = [(node["x"], node["y"]) for node in drawn["nodes"]]
    assert len(set(boxes)) == len(boxes)
    assert all(0 <= x <= drawn["width"] - node["width"] for (x, _), node in zip(boxes, drawn["nodes"], strict=True))


def test_troubles_are_told_and_nothing_else() -> None:
    events = [
        {"time": "2026-01-01T00:00:00.000+00:00", "event": "run_started", "todo": []},
        {"time": "2026-01-01T00:00:01.000+00:00", "event": "quarantined", "stage": "pack", "shard": 3, "reason": "bad"},
        {"time": "2026-01-01T00:00:02.000+00:00", "event": "stage_failed", "stage": "pack", "error": "x" * 999},
    ]
    first, second = troubles(events)
    assert first == {"time": "2026-01-01 00:00:01", "what": "quarantined", "stage": "pack", "why": "shard 3: bad"}
    assert second["why"] == "x" * 400


@pytest.mark.parametrize(("seconds", "said"), [(3.21, "3.2 s"), (331, "5.5 min"), (90_000, "25.0 h")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


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


def test_what_a_stage_drew_step_by_step(run: Run) -> None:
    artifact = run.artifacts()["train.base"]
    shown = grids("train.base", artifact)
    assert shown is not None
    assert [strip["step"] for strip in shown["strips"]] == [3, 6, 9]
    assert (shown["width"], shown["height"]) == (16, 4)
    values = [np.asarray(decoded(strip["src"])).mean() for strip in shown["strips"]]
    assert values == [85, 170, 255]
    assert np.asarray(decoded(shown["true"])).mean() == 255
    assert grids("clip", run.artifacts()["clip"]) is None


def decoded(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_near_duplicates_stand_beside_what_they_look_like(run: Run) -> None:
    """A kept row, one that differs from it in two bits and is dropped, and one of another colour."""
    artifacts = run.artifacts()
    select, annotate = artifacts["select"], artifacts["annotate"]
    (_, victim), (_, copy) = ((0, "000000001"), (1, "000010002"))
    for shard in (0, 1):
        path = annotate.shards[shard].files["parquet"]
        table = read_table(path, "annotations")
        keys = table["key"].to_pylist()
        hashes = {victim: 0b1000, copy: 0b1011}
        phash = [hashes.get(key, 2**40 * (7 + row + 99 * shard)) for row, key in enumerate(keys)]
        stored = zip(keys, table["thumbnail"].to_pylist(), strict=True)
        looks = [bytes([9] * 192) if key in hashes else data for key, data in stored]
        names = table.column_names
        table = table.set_column(names.index("phash"), "phash", pa.array(phash, pa.uint64()))
        table = table.set_column(names.index("thumbnail"), "thumbnail", pa.array(looks, pa.binary(192)))
        write_table(table, path, "annotations")
        path = select.shards[shard].files["parquet"]
        table = read_table(path, "selection")
        dropped = pa.array([key == copy for key in keys])
        reason = pc.if_else(dropped, "near_duplicate: looks like an earlier image", table["reason"])
        table = table.set_column(1, "keep", pc.and_(table["keep"], pc.invert(dropped))).set_column(2, "reason", reason)
        write_table(table, path, "selection")
    config = {"select": {"near_duplicate_bits": 6, "near_duplicate_colour": 4.0}}
    artifacts["select"] = replace(select, manifest=replace(select.manifest, config=config))
    (found,) = clusters(artifacts, 4)
    assert (found["original"]["caption"], found["count"]) == (caption(1), 1)
    assert [(item["caption"], item["note"]) for item in found["duplicates"]] == [(caption(7), "2 of 64 bits apart")]
    assert clusters(run.artifacts(), 4) == []  # the rule is off


def test_the_page_of_a_run_of_before_there_was_a_card(run: Run) -> None:
    artifacts = run.artifacts()
    assert "Data card" in pages(artifacts, run.record())[REPORT]
    del artifacts["card"]
    assert "Data card" not in pages(artifacts, run.record())[REPORT]


def test_the_summary_in_markdown(run: Run) -> None:
    text = pages(run.artifacts(), run.record(), run.events())[MARKDOWN]
    assert text.startswith("# imagen-ray: run\n")
    for words in ("| caption\\_words: too few | 12 | 1 | 11 |", "| train.base | 7 | 9 |", "Of 13 rows 11 were kept"):
        assert words in text, words
    assert "zebra" not in text  # no captions
    rows = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")]
    assert set(rows) <= {3, 5, 7}


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
    hostile = [{"time": "2026", "event": "stage_failed", "stage": "pack", "error": HOSTILE}]
    (tmp_path / "page.html").write_text(pages(artifacts, run.record(), hostile)[REPORT])
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
        assert HOSTILE in page.inner_text("#run")
        assert page.evaluate("document.querySelectorAll('img[onerror], main script').length") == 0
        _works(page, scheme)
        assert page.locator("#funnel figure").count() == 2
        assert page.locator("#funnel img").count() == 1
        browser.close()
    assert troubles == []


def _works(page: Any, scheme: str) -> None:
    """Theme, sorting, zoom; by mouse and by keys."""
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
