"""The metrics of the samples. A metric without a table of its own is shown as a list of values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.report import charts
from pipeline.report.section import ReportInputs, ReportSection, SectionContent


def collect_metrics(inputs: ReportInputs) -> SectionContent:
    """Collects the tables and charts of metrics.json."""
    return show_metrics(inputs.metrics)


def show_metrics(metrics: Mapping[str, Any]) -> SectionContent:
    """Returns the section of ``metrics``, the content of metrics.json; a metric that was not requested is absent.

    ``more`` holds metrics without a table of their own: {name: {title, description, values}}, where ``values`` maps
    labels to numbers, texts, or {value, low, high}.
    """
    figures: dict[str, charts.Figure] = {}
    tables = list(_list_composition(metrics))
    for by in ("split", "language"):
        if rows := [row for row in tables if row["by"] == by]:
            figures[f"composition_{by}"] = charts.plot_composition(rows, by)
    if len(points := _collect_clip_scores(metrics)) > 1:
        figures["scores"] = charts.plot_clip_scores(points)
    if best_of := metrics.get("best_of") or []:
        figures["best_of"] = charts.plot_best_of(best_of)
    sweep = metrics.get("sweep") or []
    distances = [key for row in sweep[:1] for key in row if key == "fid" or key.startswith(("fd_", "kid_", "cmmd_"))]
    curves = sweep if distances else []  # without a distance there is nothing to plot CLIP scores against
    if guided := [row for row in curves if row["swept"] == "guidance"]:
        figures["guidance"] = charts.plot_guidance(guided)
    if stepped := [row for row in curves if row["swept"] != "guidance"]:
        figures["by_steps"] = charts.plot_steps(stepped)
    values = {
        "composition": tables,
        "first": metrics.get("composition_first") or {},
        "candidates": metrics.get("candidates", 1),
        "best_of": best_of,
        "distances": [
            row | {"cmmd": metrics.get(f"cmmd_{key}"), "computed": describe_computed(row)}
            for key, row in (metrics.get("distances") or {}).items()
        ],
        "reference": metrics.get("reference"),
        "retrieval": metrics.get("retrieval"),
        "sweep": sweep,
        "distance_names": distances,
        "more": [
            _describe_metric(name, entry)
            for name, entry in ((metrics.get("judges") or {}) | (metrics.get("more") or {})).items()
        ],
    }
    return SectionContent(values, figures)


def _list_composition(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for by, key in (("split", "composition_table"), ("language", "composition_language_table")):
        for row in metrics.get(key) or []:
            yield {"chance": None, "ceiling": None} | row | {"group": row[by], "by": by}


def _collect_clip_scores(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """CLIP scores to compare, from chance to real pairs."""
    if metrics.get("clip_score") is None:
        return {}
    points: dict[str, Any] = {}
    if metrics.get("clip_score_chance") is not None:
        points["other prompts (chance)"] = {"value": metrics["clip_score_chance"]}
    if metrics.get("clip_score_first"):
        points["first image"] = metrics["clip_score_first"]
    points["chosen image"] = {"value": metrics["clip_score"]} | (metrics.get("clip_score_interval") or {})
    if metrics.get("clip_score_validation"):
        points["real pairs"] = metrics["clip_score_validation"]
    return points


def _describe_metric(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    rows = [(label, *_format_value(value)) for label, value in entry["values"].items()]
    parts = [entry.get("description", "")]
    if "weights" in entry:  # of a judge
        parts.append(describe_computed(entry))
    return {"title": entry.get("title", name), "description": " ".join(filter(None, parts)), "rows": rows}


def describe_computed(entry: Mapping[str, Any]) -> str:
    """Returns what a figure was computed with: model, weights, and the resolution of the model's input."""
    side = f"{entry['resolution']} pixels" if entry.get("resolution") else "its own input size"
    return f"{entry['model']}, weights {entry['weights']}, at {side}."


def _format_value(value: Any) -> tuple[str, str]:
    """Returns a value and its 95% interval as texts."""
    if isinstance(value, Mapping):
        interval = f"{value['low']:.4g} – {value['high']:.4g}" if "low" in value else ""
        return _format_value(value["value"])[0], interval
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower(), ""
    if isinstance(value, int):
        return f"{value:,}", ""
    return (f"{value:.4g}" if isinstance(value, float) else str(value)), ""


SECTION = ReportSection("Metrics", collect_metrics, Path(__file__).with_suffix(".html.jinja"))
