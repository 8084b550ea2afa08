"""What each filter dropped: counts, examples, near duplicates, and precision and recall on planted defects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataprep.card.markdown import list_source_steps
from dataprep.io import storage
from pipeline.report import charts
from pipeline.report.duplicate_clusters import collect_clusters
from pipeline.report.images import collect_dropped_examples
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.store.artifact import Artifact

EXAMPLES, CLUSTERS = 6, 6  # shown per filter; shown in all


def collect_funnel(inputs: ReportInputs) -> SectionContent:
    """Collects ``funnel``, ``by_source``, ``dropped``, ``clusters``, ``quality`` and ``filters``."""
    select = inputs.artifacts["select"]
    funnel = storage.read_json(select.path("funnel.json"))
    values = {
        "funnel": funnel,
        "by_source": list_source_steps(funnel),
        "dropped": collect_dropped_examples(inputs.artifacts["download"], select, EXAMPLES),
        "clusters": collect_clusters(inputs.artifacts, CLUSTERS),
        **_collect_quality(select),
    }
    return SectionContent(values, {"funnel": charts.plot_funnel(funnel)})


def _collect_quality(select: Artifact) -> dict[str, Any]:
    # null for a user's own list: only the embedded corpus knows which defects were planted in it.
    quality = storage.read_json(select.path("quality.json")) or {"troubles": {}, "filters": {}}
    return {
        "quality": [
            {
                "trouble": name.replace("_", " "),
                "planted": value["planted"],
                "caught": value["dropped"],
                "by": ", ".join(f"{reason} {count}" for reason, count in value["reasons"].items()),
            }
            for name, value in quality["troubles"].items()
        ],
        "filters": [
            {"filter": name, **{key: value[key] for key in ("dropped", "precision", "recall")}}
            for name, value in quality["filters"].items()
        ],
    }


SECTION = ReportSection("Funnel", collect_funnel, Path(__file__).with_suffix(".html.jinja"))
