"""The templates escape what came from the web."""

from __future__ import annotations

import re
from pathlib import Path

import pipeline
from pipeline.report.environment import create_environment

FOLDERS = [Path(pipeline.__file__).parent / name for name in ("compare", "report/sections")]


def test_templates_escape_all_but_our_own_files() -> None:
    environment = create_environment(*FOLDERS)
    own = {
        "page.html.jinja": ["css", "figure", "js", "plotly"],
        "comparison.html.jinja": ["css"],
        "blind_test.html.jinja": ["css"],
    }
    names = environment.list_templates(filter_func=lambda name: "/" not in name and name.endswith(".jinja"))
    assert {*own, "macros.html.jinja", "samples.html.jinja"} <= {*names}
    for name in names:
        assert environment.loader is not None
        source = environment.loader.get_source(environment, name)[0]
        assert sorted(re.findall(r"(\w+) \| safe", source)) == own.get(name, []), name
    assert environment.from_string("{{ caption }}").render(caption="<script>") == "&lt;script&gt;"
