"""Near copies on the page: counts, the warning, and images of the closest pairs while they are there."""

from __future__ import annotations

from typing import Any

from dataprep.io import storage
from eval.metrics.samples_table import EVALUATE, read_samples
from pipeline.report.build import REPORT, build_pages
from pipeline.report.section import ReportInputs
from pipeline.report.sections.memorisation import collect_memorisation, show_memorisation
from pipeline.store.run import Run

COUNTS = {"images": 40, "copies": 2, "exact": 0, "share": 0.05, "low": 0.01, "high": 0.16, "q05": 0.05, "median": 0.3}


def make_found(run: Run) -> dict[str, Any]:
    """What metrics.json says of a search: the first sample beside the first kept row, and a row that never was."""
    artifacts = run.artifacts()
    sample = next(read_samples(artifacts["sample"].files(), EVALUATE))
    key = "000000000"
    pair = {"prompt": sample.prompt, "seed": sample.seed, "training": key, "cosine": 0.9, "distance": 0.05}
    return {
        "training_images": 100,
        "features": "CLIP (ViT-B-32)",
        "size": 32,
        "threshold": 0.06,
        "samples": COUNTS,
        "held_out": COUNTS | {"copies": 0, "what": "validation images"},
        "warning": "2 of 40 samples are near copies of training images",
        "closest": [pair, {**pair, "prompt": "no sample shows this", "distance": 0.2}],
    }


def test_section_of_a_run(run: Run) -> None:
    artifacts, found = run.artifacts(), make_found(run)
    inputs = ReportInputs(artifacts, run.record(), {"memorisation": found})
    content = collect_memorisation(inputs)
    assert content is not None
    pairs = content.values["pairs"]
    assert pairs[0]["sample_src"].startswith("data:image/webp") and pairs[0]["training_src"].startswith("data:image/")
    assert pairs[1]["sample_src"] is None
    assert content.values["rows"][0][:4] == ("samples", 40, 2, "5.0%")
    assert content.values["rows"][1][0] == "validation images"
    metrics = artifacts["evaluate"].read_json("metrics.json") | {"memorisation": found}
    storage.write_json(artifacts["evaluate"].path("metrics.json"), metrics)
    page = build_pages(artifacts, run.record())[REPORT]
    assert '<a href="#memorisation">Memorisation</a>' in page and page.count(found["warning"]) == 2
    assert "near copies of training images" in page


def test_a_run_that_did_not_search_has_no_section(run: Run) -> None:
    assert collect_memorisation(ReportInputs(run.artifacts(), run.record(), {})) is None


def test_without_held_out_images() -> None:
    found: dict[str, Any] = {"samples": COUNTS, "held_out": None, "closest": []}
    assert len(show_memorisation(found, lambda pair: None, lambda pair: None).values["rows"]) == 1
