"""What a run came to, in a few figures and one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.report.lineage import duration
from pipeline.store import Artifact

MARKUP = re.compile(r"([\\`*_\[\]<>#|~@&])")


def summary(artifacts: Mapping[str, Artifact], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Tiles (label, value, note) and the sentence ``said``."""
    selected = artifacts["select"].manifest.counters
    seconds = sum(artifact.manifest.seconds for artifact in artifacts.values())
    stages = [a for name, a in artifacts.items() if name.startswith("train.")]
    parameters = sum(artifact.manifest.counters.get("parameters", 0) for artifact in stages)
    names = [name.removeprefix("train.") for name in artifacts if name.startswith("train.")]
    said = (
        f"Of {selected['rows']:,} rows {selected['kept']:,} were kept; a cascade of {len(names)} "
        f"({' → '.join(names)}, {parameters:,} parameters) was trained on them. All of it took {duration(seconds)}."
    )
    tiles = [
        _tile("pairs kept", f"{selected['kept']:,}", f"of {selected['rows']:,} rows"),
        _tile("time of all stages", duration(seconds), "cached ones included"),
        _tile("parameters", f"{parameters / 1e6:.2f} M", "of the cascade"),
    ]
    for split, figures in metrics.get("composition", {}).items():
        if "all" in figures:
            rows = [row for row in metrics["composition_table"] if (row["split"], row["attribute"]) == (split, "all")]
            note = f"{percent(rows[0]['low'], 0)} to {percent(rows[0]['high'], 0)}, n = {rows[0]['n']}" if rows else ""
            tiles.append(_tile(f"all as asked, {split} combinations", percent(figures["all"], 0), note))
    if metrics.get("clip_score") is not None:
        real = metrics.get("clip_score_validation")
        note = f"real pairs: {real['value']:.3f}" if real else "by the run's own CLIP"
        tiles.append(_tile("CLIP score", f"{metrics['clip_score']:.3f}", note))
    for entry in (metrics.get("distances") or {}).values():
        if entry["fd"] is not None:
            tiles.append(_tile(entry["name"], f"{entry['fd']:.3f}", f"{entry['reference_images']} real pictures"))
    return {"tiles": tiles, "said": said, "seconds": seconds}


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; nothing for None."""
    return "" if share is None else f"{100 * share:.{digits}f}%"


def cell(value: object) -> str:
    """Any text as one cell of a Markdown table that shows it as it is: no markup, no link, no mention."""
    return MARKUP.sub(r"\\\1", " ".join(str(value).split()))
