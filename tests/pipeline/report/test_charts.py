"""Charts: JSON that is safe in a script, and the right curves."""

from __future__ import annotations

import json
from typing import Any

from pipeline.report import charts
from pipeline.report.sections.training import smooth_log
from tests.helpers.paths import ROOT


def test_a_chart_cannot_end_the_script_that_holds_it() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    text = charts.encode_figure(
        charts.plot_histogram({"left": [0], "width": 1, "last": 0, "unit": hostile, "kept": [1], "dropped": [0]})
    )
    assert "<" not in text
    assert ">" not in text
    assert json.loads(text)["layout"]["xaxis"]["title"]["text"] == hostile


def test_loss_curve_skips_rows_without_loss() -> None:
    log: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 1.0, "validation_loss": 1.5},
    ]
    assert smooth_log(log) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": 1.0}]
    figure = charts.plot_loss(smooth_log(log), log)
    assert [list(trace.x) for trace in figure.data] == [[1, 3], [3]]
    assert len(smooth_log([{"step": step, "loss": 1.0} for step in range(100_000)])) <= 201


def make_point(swept: str, sampler: str = "ddim", steps: int = 8, guidance: float = 2.0) -> dict[str, Any]:
    score = {"value": guidance / 10, "low": guidance / 11, "high": guidance / 9}
    row = {"swept": swept, "sampler": sampler, "steps": steps, "guidance": guidance, "clip_score": score}
    return row | {"stage": "base", "accuracy": 0.5, "fd_clip": 1 / steps, "kid_clip": 0.0}


def test_sweep_charts_name_their_distance() -> None:
    figure = charts.plot_guidance([make_point("guidance", guidance=weight) for weight in (1.0, 4.0)])
    assert list(figure.data[0].text) == ["1", "4"]
    assert figure.layout.yaxis.title.text == "fd_clip (lower is better)"
    curves = charts.plot_steps([make_point("steps", name, steps) for name in ("ddim", "ddpm") for steps in (8, 2)])
    assert [(trace.name, list(trace.x)) for trace in curves.data[::2]] == [("ddim", [2, 8]), ("ddpm", [2, 8])]
    assert list(curves.data[0].y) == [1 / 2, 1 / 8]


def test_no_tool_bar_covers_a_legend() -> None:
    assert "displayModeBar: false" in (ROOT / "pipeline" / "report" / "page.js").read_text(encoding="utf-8")
