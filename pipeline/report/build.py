"""Builds the report from a run's artifacts: collects the sections, renders the page and the Markdown summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.report.charts import encode_figure
from pipeline.report.environment import TEMPLATES, create_environment, read_style_sheet
from pipeline.report.markdown_summary import format_summary
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.report.sections.registry import SECTIONS
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run

REPORT, MARKDOWN = "report.html", "report.md"


def publish_report(run: Run) -> str:
    """Builds the report of a finished run and writes it to RUN; returns the path of the HTML file."""
    artifacts = run.artifacts()
    missing = [stage for stage in run.record()["stages"] if stage not in artifacts and stage != "report"]
    if missing:
        raise UserError(f"{run.root}: stage {missing[0]} is not finished; complete the run with `imagen-ray run` first")
    for name, text in build_pages(artifacts, run.record(), run.events()).items():
        storage.write_bytes(run.path(name), text.encode())
    return run.path(REPORT)


def build_pages(
    artifacts: Mapping[str, Artifact], record: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = ()
) -> dict[str, str]:
    """Returns the report by file name: a self-contained HTML page, and a Markdown summary without images."""
    metrics = storage.read_json(artifacts["evaluate"].path("metrics.json"))
    inputs = ReportInputs(artifacts, record, metrics, events)
    contents = {name: found for name, section in SECTIONS.items() if (found := section.collect(inputs)) is not None}
    title = f"imagen-ray: {Path(str(record['run'])).name}"
    values = {name: content.values for name, content in contents.items()}
    page = render_page(title, record, SECTIONS, contents)
    return {REPORT: page, MARKDOWN: format_summary(title, record, values)}


def render_page(
    title: str,
    record: Mapping[str, Any],
    sections: Mapping[str, ReportSection],
    contents: Mapping[str, SectionContent],
) -> str:
    """Returns a self-contained HTML page of ``contents`` by section; ``record`` has started, seed and git_commit."""
    charts: dict[str, str] = {}
    for name, content in contents.items():
        if clash := sorted(set(charts) & set(content.charts)):
            raise ValueError(f"section {name}: chart {clash[0]!r} is already on the page; rename it")
        charts |= {key: encode_figure(figure) for key, figure in content.charts.items()}
    environment = create_environment(*dict.fromkeys(section.template.parent for section in sections.values()))
    ui = environment.get_template("macros.html.jinja").make_module({"charts": charts})
    shared = {"ui": ui, "sections": {key: content.values for key, content in contents.items()}}
    shown = [
        {
            "id": name,
            "title": sections[name].title,
            "body": Markup(environment.get_template(sections[name].template.name).render(content.values, **shared)),
        }
        for name, content in contents.items()
    ]
    return environment.get_template("page.html.jinja").render(
        title=title,
        record=record,
        sections=shown,
        charts=charts,
        css=read_style_sheet(),
        js=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )
