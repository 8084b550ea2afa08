"""Codebooks and discriminators: what the training logs say of their health at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataprep.io import storage
from pipeline.report.section import ReportInputs, ReportSection, SectionContent

# heading of a column -> key of a log row
CODEBOOK = {
    "#codes used": "codes_used",
    "#perplexity": "perplexity",
    "#revived": "codes_revived",
    "#reconstruction": "reconstruction",
    "#PSNR, held out": "validation_psnr",
}
CODES = {"#accuracy": "accuracy", "#accuracy, held out": "validation_accuracy"}
DISCRIMINATOR = {
    "#loss of the network": "adversarial_generator",
    "#loss of the discriminator": "adversarial_discriminator",
    "#verdict on real images": "adversarial_logit_real",
    "#verdict on made images": "adversarial_logit_made",
    "#its gradient": "adversarial_grad_norm",
    "#diversity": "adversarial_diversity",
}
TABLES = {"Codebooks": CODEBOOK, "Prediction of codes": CODES, "Discriminators": DISCRIMINATOR}


def collect_codes(inputs: ReportInputs) -> SectionContent | None:
    """Collects a table each of the stages with a codebook, with predicted codes and with a discriminator.

    None where there are none of them.
    """
    last = {name: _read_last(artifact.path("log.jsonl")) for name, artifact in inputs.trained.items()}
    tables = []
    for title, columns in TABLES.items():
        first = next(iter(columns.values()))
        rows = [
            (name, *_show(row, columns)) for name, row in last.items() if name.startswith("train.") and first in row
        ]
        if rows:
            tables.append({"title": title, "columns": ("stage", *columns), "rows": rows})
    return SectionContent({"tables": tables}) if tables else None


def _read_last(path: str) -> dict[str, Any]:
    """Returns the last value of each key of a log."""
    found: dict[str, Any] = {}
    for row in storage.read_json_lines(path):
        found |= {key: value for key, value in row.items() if value is not None}
    return found


def _show(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    return [f"{row[key]:.3g}" if key in row else "" for key in columns.values()]


SECTION = ReportSection("Codes and discriminators", collect_codes)
