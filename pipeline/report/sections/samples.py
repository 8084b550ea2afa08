"""Sampled images: the showcase at every stage of the cascade, and the evaluated images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from eval.metrics.samples_table import EVALUATE, SHOW, JudgedSample, read_samples
from pipeline.report.images import encode_lossless_url
from pipeline.report.section import ReportInputs, ReportSection, SectionContent

MAX_EVALUATED = 60  # evaluated images on the page
MAX_SIDE = 208  # CSS pixels of a showcase image


def collect_samples(inputs: ReportInputs) -> SectionContent:
    """Collects ``shown`` (a ladder of resolutions per prompt) and ``evaluated`` (the chosen image per prompt)."""
    paths = inputs.artifacts["sample"].files()
    chosen = (sample for sample in read_samples(paths, EVALUATE, images=True) if sample.chosen)
    return show_samples(islice(chosen, MAX_EVALUATED), read_samples(paths, SHOW, images=True), inputs.cascade)


def show_samples(
    evaluated: Iterable[JudgedSample], shown: Iterable[JudgedSample] = (), cascade: Sequence[str] = ()
) -> SectionContent:
    """Returns the section of samples with images: ``evaluated`` ones, and ``shown`` at every stage of a cascade."""
    ladders: dict[tuple[str, int], dict[str, Any]] = {}
    described = [_describe_evaluated(sample) for sample in evaluated]
    for sample in shown:
        empty = {"prompt": sample.prompt, "seed": sample.seed, "images": []}
        item = ladders.setdefault((sample.prompt, sample.seed), empty)
        source = encode_lossless_url(sample.png or b"")
        item["images"].append({"src": source, "size": sample.size, "stage": sample.stage})
        item["score"] = sample.clip_score
    for item in ladders.values():
        item["images"].sort(key=lambda image: image["size"])
        for image in item["images"]:
            image["shown"] = min(max(image["size"], 64), MAX_SIDE)
    return SectionContent({"shown": list(ladders.values()), "evaluated": described, "cascade": cascade})


def _describe_evaluated(sample: JudgedSample) -> dict[str, Any]:
    checks, wrong = sample.checks or {}, sample.wrong
    return {
        "prompt": sample.prompt,
        "seed": sample.seed,
        "split": sample.split,
        "clip_score": None if math.isnan(sample.clip_score) else sample.clip_score,
        "src": encode_lossless_url(sample.png or b""),
        "right": checks.get("all"),
        "note": "wrong: " + ", ".join(wrong) if wrong else ("all correct" if checks else ""),
    }


SECTION = ReportSection("Samples", collect_samples, Path(__file__).with_suffix(".html.jinja"))
