"""The report's charts as plotly figures. The page sets the colours of axes and text, to follow its theme."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plotly.graph_objects import Bar, Figure
from plotly.subplots import make_subplots

Rows = Sequence[Mapping[str, Any]]
PALETTE = ["#4C78A8", "#F58518", "#54A24B", "#B279A2", "#E45756", "#72B7B2"]
KEPT, DROPPED = "#4C78A8", "#E0803C"
GREY = "#888"  # visible on light and on dark
MARGIN = {"l": 56, "r": 16, "t": 30, "b": 44}


def encode_figure(figure: Figure, height: int = 320) -> str:
    """Returns the figure as JSON that is safe inside a script element; ``height`` applies if the figure sets none."""
    figure.update_layout(
        template="none",
        height=figure.layout.height or height,
        margin=MARGIN,
        colorway=PALETTE,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        hoverlabel={"namelength": -1},
    )
    figure.update_yaxes(automargin=True, title_standoff=8)
    text = json.dumps(json.loads(figure.to_json()), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------------------------------------- data


def plot_funnel(rows: Rows) -> Figure:
    """Rows kept and dropped by each filter. ``rows``: dicts with filter, kept and dropped."""
    figure = Figure()
    names = [row["filter"] for row in rows]
    for key, colour in (("kept", KEPT), ("dropped", DROPPED)):
        figure.add_bar(
            x=[row[key] for row in rows],
            y=names,
            orientation="h",
            name=key,
            marker_color=colour,
            text=[f"{row[key]:,}" if key == "kept" or row[key] else "" for row in rows],
            textposition="auto" if key == "kept" else "outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:,} " + key + "<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed", automargin=True)
    most = max((row["kept"] + row["dropped"] for row in rows), default=1)
    figure.update_xaxes(title="rows", range=[0, 1.12 * most])
    figure.update_layout(barmode="stack", height=110 + 30 * len(rows))
    return figure


def plot_histogram(bins: Mapping[str, Any], threshold: float | None = None) -> Figure:
    """Rows by value, dropped stacked on kept. ``bins``: of `pipeline.report.histograms.Histogram.bins`."""
    figure = Figure()
    width, count = bins["width"], len(bins["left"])
    right = [left + width for left in bins["left"]]
    right[-1] = max(right[-1], bins["last"])
    labels = [f"{left:g} to {end:g}" for left, end in zip(bins["left"], right, strict=True)]
    for key, colour in (("kept", KEPT), ("dropped", DROPPED)):
        if any(bins[key]):
            figure.add_bar(
                x=[left + width / 2 for left in bins["left"]],
                y=bins[key],
                width=[width] * count,
                customdata=labels,
                name=key,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate="%{customdata} " + bins["unit"] + ": %{y:,} " + key + "<extra></extra>",
            )
    if threshold is not None:
        figure.add_vline(x=threshold, line={"dash": "dash", "width": 1.5, "color": PALETTE[4]})
        figure.add_annotation(
            x=threshold, y=1, yref="paper", text=f"minimum: {threshold:g}", showarrow=False, xanchor="right"
        )
    if count == 1:
        figure.update_xaxes(range=[bins["left"][0] - 5 * width, bins["left"][0] + 6 * width])
    figure.update_xaxes(title=bins["unit"])
    figure.update_yaxes(title="rows", rangemode="tozero")
    figure.update_layout(barmode="stack", bargap=0.04, height=260)
    return figure


# ---------------------------------------------------------------------------------------------- training


def plot_loss(curve: Rows, log: Rows) -> Figure:
    """Training loss of a stage (``curve``: step, loss) and the validation losses in its log, if any."""
    figure = Figure()
    figure.add_scatter(x=_column(curve, "step"), y=_column(curve, "loss"), mode="lines", name="training")
    validated = [row for row in log if row.get("validation_loss") is not None]
    if validated:
        figure.add_scatter(
            x=_column(validated, "step"),
            y=_column(validated, "validation_loss"),
            mode="lines+markers",
            name="validation",
        )
    figure.update_xaxes(title="step")
    _set_log_axis(figure, "loss")
    figure.update_layout(height=270)
    return figure


def plot_noise_losses(log: Rows, levels: Callable[[Any], Mapping[str, float]]) -> Figure:
    """Validation loss of a stage by noise level: a curve per quarter, least noise first."""
    figure = Figure()
    rows = [row for row in log if levels(row)]
    for number, name in enumerate(levels(rows[0])):
        figure.add_scatter(
            x=_column(rows, "step"),
            y=[levels(row).get(name) for row in rows],
            mode="lines+markers",
            name=f"noise {name}",
            line={"color": PALETTE[number % len(PALETTE)]},
        )
    figure.update_xaxes(title="step")
    _set_log_axis(figure, "validation loss")
    figure.update_layout(height=270)
    return figure


def plot_throughput(logs: Mapping[str, Rows]) -> Figure:
    """Samples per second of every stage over its training."""
    figure = Figure()
    for name, rows in logs.items():
        last = rows[-1]["step"] if rows else 1
        figure.add_scatter(
            x=[100 * row["step"] / last for row in rows],
            y=_column(rows, "samples_per_second"),
            customdata=_column(rows, "step"),
            mode="lines",
            name=name,
            hovertemplate="step %{customdata}: %{y:.0f} samples/s<extra>" + name + "</extra>",
        )
    figure.update_xaxes(title="% of training")
    _set_log_axis(figure, "samples / s")
    return figure


def plot_durations(seconds: Mapping[str, float]) -> Figure:
    """Seconds per stage."""
    total = sum(seconds.values()) or 1
    figure = Figure(
        Bar(
            x=list(seconds.values()),
            y=list(seconds),
            orientation="h",
            text=[f"{value:.0f} s · {value / total:.0%}" for value in seconds.values()],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="seconds", range=[0, 1.3 * max(seconds.values(), default=1)])
    figure.update_layout(height=90 + 26 * len(seconds))
    return figure


# ---------------------------------------------------------------------------------------------- metrics


def plot_composition(table: Rows, by: str) -> Figure:
    """Accuracy per attribute, a bar per group (``by``: split or language), with interval, chance and ceiling."""
    figure = Figure()
    groups = list(dict.fromkeys(row[by] for row in table))
    for number, group in enumerate(groups):
        rows = [row for row in table if row[by] == group]
        figure.add_bar(
            x=_column(rows, "attribute"),
            y=[100 * row["accuracy"] for row in rows],
            error_y=_error_bars(rows, [row["accuracy"] for row in rows], 100),
            customdata=[[100 * row["low"], 100 * row["high"], row["n"]] for row in rows],
            name=str(group),
            offsetgroup=str(number),
            hovertemplate="%{x}: %{y:.1f}% [%{customdata[0]:.1f}, %{customdata[1]:.1f}], n = %{customdata[2]}"
            f"<extra>{group}</extra>",
        )
    for key, symbol, colour in (("ceiling", "line-ew", "#2e8b57"), ("chance", "line-ew", "#c0392b")):
        points = {row["attribute"]: 100 * row[key] for row in table if row.get(key) is not None}
        if points:
            figure.add_scatter(
                x=list(points),
                y=list(points.values()),
                mode="markers",
                name=key,
                marker={"symbol": symbol, "size": 22, "line": {"width": 2.5, "color": colour}},
                hovertemplate="%{x}: %{y:.1f}%<extra>" + key + "</extra>",
            )
    figure.update_yaxes(title="% correct", range=[0, 108])
    figure.update_layout(barmode="group", height=360)
    return figure


def plot_clip_scores(points: Mapping[str, Mapping[str, float]]) -> Figure:
    """CLIP scores with their intervals: {label: {value, low, high}}; low and high are optional."""
    rows = [{"low": point["value"], "high": point["value"]} | dict(point) for point in points.values()]
    figure = Figure()
    figure.add_scatter(
        x=_column(rows, "value"),
        y=list(points),
        error_x=_error_bars(rows, _column(rows, "value"), 1),
        mode="markers+text",
        text=[f"{row['value']:.3f}" for row in rows],
        textposition="top center",
        marker={"size": 11},
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="CLIP score (cosine)")
    figure.update_layout(height=110 + 42 * len(rows), showlegend=False)
    return figure


def plot_best_of(rows: Rows) -> Figure:
    """CLIP score, and share of images with every attribute correct, if CLIP picks the best of N candidates."""
    accuracy = [row for row in rows if row.get("accuracy")]
    shown = [("CLIP score", "clip_score", rows, 1.0)] + (
        [("% all correct", "accuracy", accuracy, 100.0)] * bool(accuracy)
    )
    figure = make_subplots(1, len(shown), horizontal_spacing=0.14)
    for column, (title, key, part, scale) in enumerate(shown, 1):
        figure.add_scatter(
            x=[str(row["n"]) for row in part],
            y=[scale * row[key]["value"] for row in part],
            error_y=_error_bars([row[key] for row in part], [row[key]["value"] for row in part], scale),
            mode="lines+markers",
            marker={"size": 9},
            row=1,
            col=column,
            hovertemplate="best of %{x}: %{y:.3f}<extra></extra>",
        )
        figure.update_yaxes(title=title, rangemode="tozero" if scale == 100 else "normal", row=1, col=column)
        figure.update_xaxes(title="candidates", type="category", row=1, col=column)
    figure.update_layout(showlegend=False, height=280)
    return figure


def plot_guidance(rows: Rows) -> Figure:
    """CLIP score against Frechet distance over the guidance weight (Imagen, figure 4a); ``rows``: of metrics.json."""
    distance = _find_distance(rows)
    figure = Figure()
    figure.add_scatter(
        x=[row["clip_score"]["value"] for row in rows],
        y=_column(rows, distance),
        error_x=_error_bars([row["clip_score"] for row in rows], [row["clip_score"]["value"] for row in rows], 1),
        text=[f"{row['guidance']:g}" for row in rows],
        mode="lines+markers+text",
        textposition="top center",
        marker={"size": 10},
        cliponaxis=False,
        hovertemplate="guidance %{text}: CLIP %{x:.3f}, " + distance + " %{y:.4f}<extra></extra>",
    )
    figure.update_xaxes(title="CLIP score (higher is better)")
    figure.update_yaxes(title=f"{distance} (lower is better)", rangemode="tozero")
    figure.update_layout(showlegend=False)
    return figure


def plot_steps(rows: Rows) -> Figure:
    """Distance and CLIP score by network evaluations, a curve per sampler."""
    distance = _find_distance(rows)
    figure = make_subplots(1, 2, horizontal_spacing=0.14)
    for number, name in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
        part = sorted((row for row in rows if row["sampler"] == name), key=lambda row: row["steps"])
        values = {distance: _column(part, distance), "CLIP score": [row["clip_score"]["value"] for row in part]}
        for column, (title, curve) in enumerate(values.items(), 1):
            figure.add_scatter(
                x=_column(part, "steps"),
                y=curve,
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line={"color": PALETTE[number % len(PALETTE)]},
                row=1,
                col=column,
                hovertemplate="%{x} steps: " + title + " %{y:.4f}<extra>" + name + "</extra>",
            )
    steps = sorted({row["steps"] for row in rows})
    for column, title in enumerate((f"{distance} (lower is better)", "CLIP score"), 1):
        figure.update_yaxes(title=title, row=1, col=column)
        figure.update_xaxes(title="network evaluations", type="log", tickvals=steps, row=1, col=column)
    figure.update_layout(height=320)
    return figure


def _set_log_axis(figure: Figure, title: str) -> None:
    """Makes the y axis logarithmic, with few round ticks."""
    values = [value for trace in figure.data for value in trace.y if value and value > 0]
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1) if values else ()
    steps = (1, 2, 5) if len(powers) < 4 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    figure.update_yaxes(title=title, type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _find_distance(rows: Rows) -> str:
    """Returns the name of the first distance in the rows."""
    return next(key for key in rows[0] if key == "fid" or key.startswith("fd_"))


def _column(rows: Rows, key: str) -> list[Any]:
    return [row[key] for row in rows]


def _error_bars(rows: Rows, values: Sequence[float], scale: float) -> dict[str, Any]:
    """Returns error bars from ``low`` to ``high`` around ``values``."""
    pairs = list(zip(rows, values, strict=True))
    up, down = (
        [scale * (row["high"] - value) for row, value in pairs],
        [scale * (value - row["low"]) for row, value in pairs],
    )
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "thickness": 1.4,
        "width": 3,
        "color": GREY,
    }
