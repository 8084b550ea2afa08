"""The sections of the report, in the order of the page. A new section is one file, its template and a line here."""

from __future__ import annotations

from pipeline.report.section import ReportSection
from pipeline.report.sections import (
    audit,
    captions,
    codes,
    data,
    funnel,
    memorisation,
    metrics,
    run,
    samples,
    source,
    summary,
    training,
)

SECTIONS: dict[str, ReportSection] = {
    "summary": summary.SECTION,
    "samples": samples.SECTION,
    "metrics": metrics.SECTION,
    "memorisation": memorisation.SECTION,
    "audit": audit.SECTION,
    "source": source.SECTION,
    "funnel": funnel.SECTION,
    "data": data.SECTION,
    "captions": captions.SECTION,
    "training": training.SECTION,
    "codes": codes.SECTION,
    "run": run.SECTION,
}
