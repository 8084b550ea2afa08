"""The page of ``imagen-ray evaluate``: the sections of a run's report that do not need a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataprep.io.wording import count_of
from eval.metrics.samples_table import JudgedSample
from pipeline.report.build import render_page
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.report.sections import audit, memorisation, metrics, samples, summary
from pipeline.report.sections.memorisation import FindImage, show_memorisation
from pipeline.report.sections.samples import show_samples
from pipeline.report.sections.summary import list_metric_tiles

SUMMARY, ABOUT = "summary", "about"


def _read_nothing(inputs: ReportInputs) -> SectionContent | None:
    return None


SECTIONS: dict[str, ReportSection] = {
    SUMMARY: summary.SECTION,
    "samples": samples.SECTION,
    "metrics": metrics.SECTION,
    "memorisation": memorisation.SECTION,
    "audit": audit.SECTION,
    ABOUT: ReportSection("How it was computed", _read_nothing),
}


def build_evaluation_page(
    title: str,
    record: Mapping[str, Any],
    found: Mapping[str, Any],
    images: Iterable[JudgedSample],
    find_sample: FindImage,
    find_training: FindImage,
    data_audit: Mapping[str, Any] | None = None,
) -> str:
    """Returns the HTML page.

    Args:
        record: started, seed, git_commit, and what else is shown of the call.
        found: the content of metrics.json.
        images: judged images to show, with their pixels.
        find_sample, find_training: return the images of the closest pairs.
        data_audit: audit of the training data, to show beside that of the samples.
    """
    contents = {
        SUMMARY: SectionContent({"sentence": describe_subject(found), "tiles": list_metric_tiles(found)}),
        "samples": show_samples(images),
        "metrics": metrics.show_metrics(found),
    }
    if found.get("memorisation"):
        contents["memorisation"] = show_memorisation(found["memorisation"], find_sample, find_training)
    if section := audit.show_audit(data_audit, found.get("audit")):
        contents["audit"] = section
    contents[ABOUT] = SectionContent({"tables": [_tabulate_call(record, found)]})
    return render_page(title, record, SECTIONS, contents)


def describe_subject(found: Mapping[str, Any]) -> str:
    """Returns what was evaluated as a sentence or a few."""
    about = found["evaluated"]
    counted = f"{count_of(about['images'], 'image')} at {about['size']} pixels, {about['prompts']}"
    sentence = f"The {about['what']} {about['path']}: {counted}."
    return " ".join([sentence, *(f"{note[0].upper()}{note[1:]}." for note in about["notes"])])


def _tabulate_call(record: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    clip = found["clip"]
    name = f"{clip.get('model') or 'trained in the run'} {clip.get('pretrained') or ''}".strip()
    side = f"{clip['resolution']} pixels" if clip["resolution"] else "its own input size"
    about = found["evaluated"]
    rows: list[Sequence[Any]] = [
        ("command", record["command"]),
        (about["what"], about["path"]),
        ("images", f"{about['images']:,} at {about['size']} pixels, {about['prompts']}"),
        ("CLIP that scores", f"{name}, weights {clip['digest']}, at {side}"),
        *((f"{library} version", version) for library, version in record["versions"].items()),
    ]
    return {"title": "Call", "columns": ["what", "value"], "rows": rows}


def describe_title(path: str) -> str:
    """Returns the page's title."""
    return f"imagen-ray evaluate: {Path(path).name}"
