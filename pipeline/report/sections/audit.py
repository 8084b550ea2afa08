"""The audit: who and what is in the training data, and in the samples of the model beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataprep.io import storage
from pipeline.report.audit_tables import tabulate_audits
from pipeline.report.data_card_files import FACTS
from pipeline.report.section import ReportInputs, ReportSection, SectionContent


def collect_audit(inputs: ReportInputs) -> SectionContent | None:
    """Collects the tables of a run."""
    return show_audit(storage.read_json(inputs.artifacts["card"].path(FACTS)).get("audit"), inputs.metrics.get("audit"))


def show_audit(data: Mapping[str, Any] | None, samples: Mapping[str, Any] | None) -> SectionContent | None:
    """Returns the section of two audits; None where nobody is named and nothing was looked for."""
    tables = tabulate_audits(data, samples)
    return SectionContent({"tables": tables}) if tables else None


SECTION = ReportSection("Audit", collect_audit, Path(__file__).with_suffix(".html.jinja"))
