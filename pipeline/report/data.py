"""The data of a run as the page shows it: funnel, examples, how quantities are spread, duplicates, embeddings, card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataprep import storage
from dataprep.card import most
from pipeline.report import charts
from pipeline.report.card import FACTS
from pipeline.report.duplicates import clusters
from pipeline.report.images import dropped_examples, kept_examples
from pipeline.report.spread import spreads, token_lengths
from pipeline.store import Artifact

EXAMPLES, KEPT, CLUSTERS = 6, 18, 6


def data(artifacts: Mapping[str, Artifact]) -> tuple[dict[str, Any], dict[str, charts.Figure]]:
    """What the sections "funnel" and "data" show, and their charts."""
    select = artifacts["select"]
    funnel = storage.read_json(select.path("funnel.json"))
    figures = {"funnel": charts.funnel(funnel)}
    least = select.manifest.config.get("clip.min_similarity")
    found = {name: (spread.title, spread.bins()) for name, spread in spreads(artifacts).items()}
    for name, (_, bins) in found.items():
        if bins:
            figures[f"spread_{name}"] = charts.spread(bins, least if name == "similarity" else None)
    tokens = token_lengths(artifacts["embed"]).bins()
    if tokens:
        figures["tokens"] = charts.spread(tokens)
    values = {
        "funnel": funnel,
        "spreads": {name: title for name, (title, bins) in found.items() if bins},
        "dropped": dropped_examples(artifacts["download"], select, EXAMPLES),
        "clusters": clusters(artifacts, CLUSTERS),
        "kept": kept_examples(artifacts["download"], select, KEPT),
        "embedding": embedding(artifacts["embed"]),
        **_quality(select),
        **_card(artifacts),
    }
    return values, figures


def embedding(artifact: Artifact) -> dict[str, Any]:
    """Sizes of the stored text embeddings: counts, bytes on disk, mean bytes and tokens a caption, what was cut."""
    counters = artifact.manifest.counters
    captions = counters.get("captions", 0)
    size = sum(output.bytes for output in artifact.manifest.outputs)
    config = artifact.manifest.config.get("embed", {})
    return {
        "captions": captions,
        "distinct": counters.get("distinct", captions),
        "tokens": counters.get("tokens"),
        "bytes": size,
        "bytes_each": size / captions if captions else None,
        "truncated": counters.get("truncated", 0),
        "error": counters.get("codec_error_ppm"),
        "codec": config.get("codec"),
        "max_length": config.get("max_length"),
    }


def _quality(select: Artifact) -> dict[str, Any]:
    # null for a user's own list: only the embedded corpus knows what trouble was planted in it.
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


def _card(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The data card as tables; none for a run of before there was one."""
    if "card" not in artifacts:
        return {"card": None, "card_tables": []}
    told = storage.read_json(artifacts["card"].path(FACTS))
    forgotten = {"forgotten on request": told["forgotten"]}
    tables = [
        ("Download", "status", told["statuses"]),
        ("Rows without an image", "reason", told["reasons"]),
        ("Opted out and forgotten", "wish", told["opt_outs"] | forgotten),
        ("Licences", told["licence_column"] or "", told["licences"]),
        ("Languages of the kept captions", "language", told["languages"]),
        ("Shorter side of the kept originals", "pixels", told["sides"]),
        ("Splits", "split", told["splits"]),
    ]
    shown = [{"title": title, "head": head, "rows": most(counts)} for title, head, counts in tables if counts]
    return {"card": told, "card_tables": shown}
