"""The comparison of two runs as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.metrics.samples_table import JudgedSample
from pipeline.compare.measures import ComparisonRow, state_verdict
from pipeline.compare.runs import ComparedRun, ImagePair, list_differences
from pipeline.report.environment import create_environment, read_style_sheet
from pipeline.report.images import encode_png_url


def render_template(name: str, **values: Any) -> str:
    """Renders a template of this folder; every value but the style sheet is escaped."""
    environment = create_environment(Path(__file__).parent)
    return environment.get_template(name).render(css=read_style_sheet(), **values)


def render_comparison(
    a: ComparedRun, b: ComparedRun, pairs: Sequence[ImagePair], rows: Sequence[ComparisonRow], shown: int
) -> str:
    """Returns the comparison as self-contained HTML with up to ``shown`` pairs of images."""
    items = [
        {
            "prompt": pair.prompt,
            "seed": pair.seed,
            "sides": [_describe_image(sample) for sample in pair.chosen],
            "differs": pair.chosen[0].checks != pair.chosen[1].checks,
        }
        for pair in pairs[:shown]
    ]
    return render_template(
        "comparison.html.jinja",
        title=f"{Path(a.name).name} against {Path(b.name).name}",
        names=[a.name, b.name],
        verdict=state_verdict(rows),
        table=[_describe_measure(row) for row in rows],
        differences=list_differences(a, b),
        pairs=items,
        count=len(pairs),
    )


def _describe_measure(row: ComparisonRow) -> dict[str, Any]:
    """Texts of a table row, and x positions (0 to 100) of its interval, on which right of 50 is better for B."""
    interval = row.difference
    reach = max(abs(interval["low"]), abs(interval["high"]), 1e-12)
    sign = 1 if row.higher_is_better else -1
    entry = {"name": row.name, "a": row.format(row.a), "b": row.format(row.b), "n": row.n, "verdict": row.verdict}
    entry |= {key: row.format(value) for key, value in interval.items()}
    return entry | {f"x_{key}": round(50 + sign * 48 * value / reach, 2) for key, value in interval.items()}


def _describe_image(sample: JudgedSample) -> dict[str, Any]:
    wrong = sample.wrong
    note = "wrong: " + ", ".join(wrong) if wrong else "all correct" if sample.checks else ""
    return {
        "src": encode_png_url(sample.png or b""),
        "score": f"{sample.clip_score:.3f}",
        "note": note,
        "bad": bool(wrong),
    }
