"""Captions that a model wrote, beside the images' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataprep.io.keys import split_key
from dataprep.io.parquet import read_table
from pipeline.report.images import collect_kept_examples
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.store.artifact import Artifact

EXAMPLES = 24  # kept pairs shown


def collect_captions(inputs: ReportInputs) -> SectionContent | None:
    """Collects ``names`` of the captions, ``rows`` of examples, and a table of counts; None where none were written."""
    caption = inputs.artifacts.get("caption")
    if caption is None:
        return None
    config = caption.manifest.config["caption"]
    trained = {name for names in caption.manifest.config["names"].values() for name in names}
    names = [name for name in config["prompts"] if name in trained]
    examples = collect_kept_examples(inputs.artifacts["download"], inputs.artifacts["select"], EXAMPLES)
    written = _read_captions(caption, [item["key"] for item in examples])
    rows = [item | {"written": [written[item["key"]].get(name) for name in names]} for item in examples]
    counters = caption.manifest.counters
    counts = [
        ("images described", counters["captioned"]),
        ("captions written", counters["captions"]),
        ("answers without text: the image's own caption takes their place", counters["empty"]),
        ("answers cut at the limit of tokens, after their last whole sentence", counters["cut"]),
    ]
    prompts = [(name, config["prompts"][name]["prompt"]) for name in names]
    return SectionContent(
        {"model": config["model"], "names": names, "rows": rows, "counts": counts, "prompts": prompts}
    )


def _read_captions(caption: Artifact, keys: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the written captions of samples, by key."""
    shards = {shard.id: shard.files["parquet"] for shard in caption.shards}
    found: dict[str, dict[str, Any]] = {key: {} for key in keys}
    for number in sorted({split_key(key)[0] for key in keys}):
        for row in read_table(shards[number], "columns").to_pylist() if number in shards else []:
            if row["key"] in found:
                found[row["key"]] = row
    return found


SECTION = ReportSection("Captions", collect_captions, Path(__file__).with_suffix(".html.jinja"))
