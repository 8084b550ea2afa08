"""The report's parts: charts as safe JSON, pictures as data URLs, examples a reason."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image

from pipeline.report import charts
from pipeline.report.images import png_url, thumbnail_url


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
