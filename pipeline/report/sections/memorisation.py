"""Near copies of training images among the samples: counts, the warning, and the closest pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataprep.io.keys import split_key
from eval.metrics.samples_table import EVALUATE, read_samples
from pipeline.report.images import THUMBNAIL, encode_webp_url, load_examples
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.units import format_decimal, format_percent

FindImage = Callable[[Mapping[str, Any]], str | None]  # pair -> its image as a data URL; None: not there any more


def collect_memorisation(inputs: ReportInputs) -> SectionContent | None:
    """Collects the section of a run that looked for near copies; None for others."""
    found = inputs.metrics.get("memorisation")
    if found is None:
        return None
    wanted = {(pair["prompt"], pair["seed"]) for pair in found["closest"]}
    samples: dict[tuple[str, int], str] = {}
    for sample in read_samples(inputs.artifacts["sample"].files(), EVALUATE, images=True):
        if sample.index == 0 and (sample.prompt, sample.seed) in wanted:
            samples[sample.prompt, sample.seed] = encode_pixels(sample.pixels())

    def find_training(pair: Mapping[str, Any]) -> str | None:
        places = [(split_key(pair["training"])[0], pair["training"])]
        examples = load_examples(inputs.artifacts["download"], places)  # none of an image that was forgotten
        return examples[0]["src"] if examples else None

    return show_memorisation(found, lambda pair: samples.get((pair["prompt"], pair["seed"])), find_training)


def show_memorisation(found: Mapping[str, Any], find_sample: FindImage, find_training: FindImage) -> SectionContent:
    """Returns the section of ``found``, the key ``memorisation`` of metrics.json."""
    sets = [("samples", found["samples"])]
    if found["held_out"]:
        sets.append((found["held_out"]["what"].rstrip(","), found["held_out"]))
    columns = ["images", "#count", "#near copies", "#share", "#95% interval", "#exact", "#nearest 5%", "#median"]
    pairs = [
        {**pair, "sample_src": find_sample(pair), "training_src": find_training(pair)} for pair in found["closest"]
    ]
    rows = [_describe_set(name, counts) for name, counts in sets if counts]
    return SectionContent({**found, "columns": columns, "rows": rows, "pairs": pairs})


def _describe_set(name: str, counts: Mapping[str, Any]) -> Sequence[Any]:
    interval = f"{format_percent(counts['low'])} – {format_percent(counts['high'])}"
    share, low, median = (
        format_percent(counts["share"]),
        format_decimal(counts["q05"]),
        format_decimal(counts["median"]),
    )
    return name, counts["images"], counts["copies"], share, interval, counts["exact"], low, median


def encode_pixels(pixels: np.ndarray) -> str:
    """Returns uint8 RGB (H, W, 3), at most `THUMBNAIL` pixels wide and high, as a lossless data URL."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return encode_webp_url(image, lossless=True)


SECTION = ReportSection("Memorisation", collect_memorisation, Path(__file__).with_suffix(".html.jinja"))
