"""The data set: histograms, text embeddings, examples of kept pairs, and the data card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataprep.card.facts import describe_source, list_most_frequent
from dataprep.io import storage
from pipeline.report import charts
from pipeline.report.data_card_files import FACTS
from pipeline.report.histograms import count_tokens, count_values
from pipeline.report.images import collect_kept_examples
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.store.artifact import Artifact

EXAMPLES = 18  # kept pairs shown


def collect_data(inputs: ReportInputs) -> SectionContent:
    """Collects ``histograms`` (titles by name), ``kept``, ``embedding``, ``card``, ``card_tables`` and ``sources``."""
    artifacts = inputs.artifacts
    select = artifacts["select"]
    threshold = select.manifest.config.get("clip.min_similarity")
    counted = {name: (histogram.title, histogram.bins()) for name, histogram in count_values(artifacts).items()}
    figures = {
        f"histogram_{name}": charts.plot_histogram(bins, threshold if name == "similarity" else None)
        for name, (_, bins) in counted.items()
        if bins
    }
    if tokens := count_tokens(artifacts["embed"]).bins():
        figures["tokens"] = charts.plot_histogram(tokens)
    values = {
        "histograms": {name: title for name, (title, bins) in counted.items() if bins},
        "kept": collect_kept_examples(artifacts["download"], select, EXAMPLES),
        "embedding": measure_embeddings(artifacts["embed"]),
        **_collect_card(artifacts),
    }
    return SectionContent(values, figures)


def measure_embeddings(embed: Artifact) -> dict[str, Any]:
    """Returns counts and sizes of the stored text embeddings; ``error`` is the codec's, in parts per million."""
    counters = embed.manifest.counters
    captions = counters.get("captions", 0)
    size = sum(output.bytes for output in embed.manifest.outputs)
    config = embed.manifest.config.get("embed", {})
    return {
        "captions": captions,
        "distinct": counters.get("distinct", captions),
        "tokens": counters.get("tokens"),
        "bytes": size,
        "bytes_per_caption": size / captions if captions else None,
        "truncated": counters.get("truncated", 0),
        "error": counters.get("codec_error_ppm"),
        "codec": config.get("codec"),
        "max_length": config.get("max_length"),
    }


def _collect_card(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    facts = storage.read_json(artifacts["card"].path(FACTS))
    forgotten = {"forgotten on request": facts["forgotten"]}
    tables = [
        ("Download", "status", facts["statuses"]),
        ("Rows without an image", "reason", facts["reasons"]),
        ("Opted out and forgotten", "reason", facts["opt_outs"] | forgotten),
        ("Licences", facts["licence_column"] or "", facts["licences"]),
        ("Languages of the kept captions", "language", facts["languages"]),
        ("Shorter side of the kept originals", "pixels", facts["sides"]),
        ("Splits", "split", facts["splits"]),
    ]
    shown = [
        {"title": title, "head": head, "rows": list_most_frequent(counts)} for title, head, counts in tables if counts
    ]
    return {"card": facts, "card_tables": shown, "sources": [describe_source(source) for source in facts["sources"]]}


SECTION = ReportSection("Data", collect_data, Path(__file__).with_suffix(".html.jinja"))
