"""What a report section is made of.

A section is ``<name>.py`` in `pipeline/report/sections/` with a ``SECTION``, and ``<name>.html.jinja``, its template,
unless it has tables alone. It is shown once it has a line in `pipeline.report.sections.registry.SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure

from pipeline.store.artifact import Artifact
from train.tasks.cascade_config import generates_images

TABLES_TEMPLATE = Path(__file__).with_name("section.html.jinja")


@dataclass(frozen=True)
class ReportInputs:
    """What a section may read.

    Attributes:
        artifacts: finished stages by name, in the pipeline's order; ``report`` is not among them.
        record: the content of run.json.
        metrics: the content of metrics.json. A key is absent if its metric was not requested.
        events: the lines of events.jsonl, oldest first.
    """

    artifacts: Mapping[str, Artifact]
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]] = ()

    @property
    def trained(self) -> dict[str, Artifact]:
        """Stages that wrote a training log: the cascade, and the encoder and CLIP if trained here."""
        return {name: artifact for name, artifact in self.artifacts.items() if artifact.has("log.jsonl")}

    @property
    def cascade(self) -> list[str]:
        """Names of the cascade stages, lowest resolution first."""
        names = [name.removeprefix("train.") for name in self.artifacts if name.startswith("train.")]
        trainings = {name: self.artifacts[f"train.{name}"].manifest.config["train"] for name in names}
        sizes = {name: found["resolution"] for name, found in trainings.items() if generates_images(found)}
        return sorted(sizes, key=lambda name: sizes[name])


@dataclass(frozen=True)
class SectionContent:
    """What a section's template gets.

    The default template shows ``values["tables"]``, each with title, columns (``#``: of numbers) and rows.

    Attributes:
        values: template variables.
        charts: plotly figures by name, unique over the page; the macro ``ui.chart`` places one.
    """

    values: dict[str, Any]
    charts: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportSection:
    """A section: its heading, the function that collects its content (None: not on the page), and its template.

    The template sees its own values, ``sections`` (the values of every section by name), ``charts`` (names of all
    charts) and ``ui`` (the macros of macros.html.jinja).
    """

    title: str
    collect: Callable[[ReportInputs], SectionContent | None]
    template: Path = TABLES_TEMPLATE
