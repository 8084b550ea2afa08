"""Builds the report from a run's artifacts: collects the sections, renders the page and the Markdown summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.report.charts import encode_figure
from pipeline.report.environment import TEMPLATES, create_environment, read_style_sheet
from pipeline.report.markdown_summary import format_summary
from pipeline.report.section import ReportInputs, SectionContent
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
    contents = {name: section.collect(inputs) for name, section in SECTIONS.items()}
    title = f"imagen-ray: {Path(str(record['run'])).name}"
    values = {name: content.values for name, content in contents.items()}
    return {REPORT: _render_page(title, record, contents), MARKDOWN: format_summary(title, record, values)}


def _render_page(title: str, record: Mapping[str, Any], contents: Mapping[str, SectionContent]) -> str:
    charts: dict[str, str] = {}
    for name, content in contents.items():
        if clash := sorted(set(charts) & set(content.charts)):
            raise ValueError(f"section {name}: chart {clash[0]!r} is already on the page; rename it")
        charts |= {key: encode_figure(figure) for key, figure in content.charts.items()}
    environment = create_environment(*dict.fromkeys(section.template.parent for section in SECTIONS.values()))
    sections = [
        {"id": name, "title": SECTIONS[name].title, "body": _render_section(environment, name, contents, charts)}
        for name in contents
    ]
    return environment.get_template("page.html.jinja").render(
        title=title,
        record=record,
        sections=sections,
        charts=charts,
        css=read_style_sheet(),
        js=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def _render_section(
    environment: Environment, name: str, contents: Mapping[str, SectionContent], charts: Mapping[str, str]
) -> Markup:
    ui = environment.get_template("macros.html.jinja").make_module({"charts": charts})
    shared = {"ui": ui, "sections": {key: content.values for key, content in contents.items()}}
    template = environment.get_template(SECTIONS[name].template.name)
    return Markup(template.render(contents[name].values, **shared))
