"""Puts the report together from artifacts: its sections are collected beside, how they look is in the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from dataprep import storage
from dataprep.schema import UserError
from pipeline.report import charts
from pipeline.report.data import data
from pipeline.report.learning import learning, trained
from pipeline.report.lineage import duration, lineage, troubles
from pipeline.report.measures import measures, samples
from pipeline.report.summary import cell, percent, summary
from pipeline.store import Artifact, Run

HERE = Path(__file__).parent
REPORT, MARKDOWN = "report.html", "report.md"
SECTIONS = (
    ("summary", "Summary"),
    ("samples", "Samples"),
    ("metrics", "Metrics"),
    ("funnel", "Funnel"),
    ("data", "Data"),
    ("training", "Training"),
    ("run", "Run"),
)


def publish_report(run: Run) -> str:
    """Builds the report of a finished run from its artifacts and writes its pages to RUN; returns the HTML's path."""
    artifacts = run.artifacts()
    missing = [stage for stage in run.record()["stages"] if stage not in artifacts and stage != "report"]
    if missing:
        raise UserError(f"{run.root}: {missing[0]} is not finished; `imagen-ray run` the config to its end first")
    for name, text in pages(artifacts, run.record(), run.events()).items():
        storage.write_bytes(run.path(name), text.encode())
    return run.path(REPORT)


def pages(
    artifacts: Mapping[str, Artifact], record: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = ()
) -> dict[str, str]:
    """The report by file name: one self-contained HTML text, and a Markdown summary without pictures."""
    metrics = storage.read_json(artifacts["evaluate"].path("metrics.json"))
    learned, curves = learning(artifacts)
    measured, figures = measures(metrics)
    told, spreads = data(artifacts)
    values: dict[str, Any] = {
        "title": f"imagen-ray: {Path(str(record['run'])).name}",
        "sections": SECTIONS,
        "record": record,
        "config": yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True),
        "cascade": [name.removeprefix("train.") for name in trained(artifacts) if name.startswith("train.")],
        "troubles": troubles(events),
        **summary(artifacts, metrics),
        **samples(artifacts["sample"]),
        **learned,
        **measured,
        **told,
        **lineage(artifacts, record),
    }
    seconds = {name: artifact.manifest.seconds for name, artifact in artifacts.items()}
    drawn = figures | curves | spreads | {"durations": charts.durations(seconds)}
    values["charts"] = {name: charts.to_json(figure) for name, figure in drawn.items()}
    return {REPORT: _html(values), MARKDOWN: _markdown(values)}


def _html(values: Mapping[str, Any]) -> str:
    page = _environment(autoescape=True).get_template("page.html.jinja")
    css, js = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return page.render(**values, css=css, js=js, plotly=get_plotlyjs())


def _markdown(values: Mapping[str, Any]) -> str:
    """Markdown has no escaping of its own in templates: what may hold anything goes through the filter ``cell``."""
    text = _environment(autoescape=False).get_template("summary.md.jinja").render(**values)
    return text.strip() + "\n"


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "percent": percent, "duration": duration, "digits": _digits, "size": _size}
    return environment


def _digits(value: float | None, count: int = 3) -> str:
    """A number with ``count`` digits after the point; nothing for None."""
    return "" if value is None else f"{value:,.{count}f}"


def _size(count: float | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return ""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
