"""The report's charts, as plotly figures. Colours of axes and text are set in the page, to follow its theme."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

PALETTE = ["#4C78A8", "#F58518", "#54A24B", "#B279A2", "#E45756", "#72B7B2"]
MARGIN = {"l": 56, "r": 16, "t": 16, "b": 44}


def to_json(figure: go.Figure, height: int = 320) -> str:
    """The figure as JSON that is safe inside a script element of a page."""
    figure.update_layout(
        template="none",
        height=height,
        margin=MARGIN,
        colorway=PALETTE,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.12, "x": 0},
    )
    text = json.dumps(json.loads(figure.to_json()), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def funnel(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Rows left after each filter. ``rows``: dicts with ``filter`` and ``kept``."""
    figure = go.Figure(
        go.Bar(
            x=[row["kept"] for row in rows],
            y=[row["filter"] for row in rows],
            orientation="h",
            text=[f"{row['kept']:,}" for row in rows],
            hovertemplate="%{y}: %{x:,} kept<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="rows kept")
    return figure


def losses(logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str = "loss") -> go.Figure:
    """A curve a training stage: ``logs`` maps its name to rows with ``step`` and ``key``."""
    figure = go.Figure()
    for name, rows in logs.items():
        rows = [row for row in rows if row.get(key) is not None]
        figure.add_scatter(x=[row["step"] for row in rows], y=[row[key] for row in rows], mode="lines", name=name)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=key, type="log")
    return figure


def composition(figures: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Accuracy an attribute, a bar a split: ``{split: {attribute: share}}``."""
    figure = go.Figure()
    for split, values in figures.items():
        figure.add_bar(
            x=list(values),
            y=[100 * value for value in values.values()],
            name=split,
            hovertemplate="%{x}: %{y:.1f}%<extra>" + split + "</extra>",
        )
    figure.update_yaxes(title="% as asked", range=[0, 105])
    figure.update_layout(barmode="group")
    return figure


def sweep(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """CLIP score against Frechet distance along a sampler's settings; ``rows`` as metrics.json has them."""
    figure = go.Figure()
    for swept in dict.fromkeys(row["swept"] for row in rows):
        along = [row for row in rows if row["swept"] == swept]
        distance = next(key for key in along[0] if key == "fid" or key.startswith("fd_"))
        figure.add_scatter(
            x=[row["clip_score"]["value"] for row in along],
            y=[row[distance] for row in along],
            text=[f"{row[swept]}" for row in along],
            mode="lines+markers+text",
            textposition="top center",
            name=swept,
            hovertemplate=swept + " %{text}: CLIP %{x:.3f}, " + distance + " %{y:.4f}<extra></extra>",
        )
        figure.update_yaxes(title=distance)
    figure.update_xaxes(title="CLIP score")
    return figure


def histogram(values: Sequence[float], title: str) -> go.Figure:
    """How ``values`` are spread."""
    figure = go.Figure(go.Histogram(x=list(values), nbinsx=40))
    figure.update_xaxes(title=title)
    figure.update_yaxes(title="rows")
    return figure


def durations(seconds: Mapping[str, float]) -> go.Figure:
    """Seconds a stage took."""
    figure = go.Figure(
        go.Bar(
            x=list(seconds.values()),
            y=list(seconds),
            orientation="h",
            text=[f"{value:.0f} s" for value in seconds.values()],
            hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="seconds")
    return figure
