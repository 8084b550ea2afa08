"""What was measured of the samples, and the samples themselves, as the page shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from dataprep.schema import read_table
from pipeline.report import charts
from pipeline.report.images import lossless_url
from pipeline.store import Artifact

JUDGED = 60  # pictures shown of those that were judged
SHOWN_SIDE = 208  # CSS pixels of a shown picture at most
LATER = ("distances", "best_of", "retrieval", "sweep", "reference", "composition_language_table", "validation_loss")


def samples(artifact: Artifact) -> dict[str, Any]:
    """The showcase (a ladder of resolutions a prompt) and the judged pictures."""
    ladders: dict[tuple[str, int], dict[str, Any]] = {}
    judged: list[dict[str, Any]] = []
    for path in artifact.files():
        table = read_table(path, "samples")
        show_N = pc.equal(table["role"], "show")
        drawn = table.filter(pc.invert(show_N)).filter(pc.field("chosen")).slice(0, JUDGED - len(judged))
        judged += [_judged(row) for row in drawn.to_pylist()]
        for row in table.filter(show_N).to_pylist():
            key = (row["prompt"], row["seed"])
            item = ladders.setdefault(key, {"prompt": row["prompt"], "seed": row["seed"], "images": []})
            item["images"].append({"src": lossless_url(row["png"]), "size": row["size"], "stage": row["stage"]})
            item["score"] = row["clip_score"]
    for item in ladders.values():
        item["images"].sort(key=lambda image: image["size"])
        for image in item["images"]:
            image["shown"] = min(max(image["size"], 64), SHOWN_SIDE)
    return {"shown": list(ladders.values()), "judged": judged}


def _judged(row: Mapping[str, Any]) -> dict[str, Any]:
    right = json.loads(row["checks"]) if row["checks"] else {}
    wrong = [name for name, value in right.items() if not value and name != "all"]
    item = {key: row[key] for key in ("prompt", "seed", "split", "clip_score")}
    item |= {"src": lossless_url(row["png"]), "right": right.get("all") if right else None}
    return item | {"note": "wrong: " + ", ".join(wrong) if wrong else ("all as asked" if right else "")}


def measures(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, charts.Figure]]:
    """What the section shows of metrics.json, and its charts."""
    measured: dict[str, Any] = dict.fromkeys(LATER) | dict(metrics)  # an older one has fewer
    figures: dict[str, charts.Figure] = {}
    tables = [row | {"group": row[by], "by": by} for by, row in _composition(measured)]
    for by in ("split", "language"):
        if rows := [row for row in tables if row["by"] == by]:
            figures[f"composition_{by}"] = charts.composition(rows, by)
    if len(points := _scores(measured)) > 1:
        figures["scores"] = charts.scores(points)
    if measured["best_of"]:
        figures["best_of"] = charts.best_of(measured["best_of"])
    sweep = measured["sweep"] or []
    names = [key for row in sweep[:1] for key in row if key == "fid" or key.startswith(("fd_", "kid_"))]
    curves = sweep if names else []  # without a feature space there is nothing to hold CLIP scores against
    if guided := [row for row in curves if row["swept"] == "guidance"]:
        figures["guidance"] = charts.guidance(guided)
    if stepped := [row for row in curves if row["swept"] != "guidance"]:
        figures["by_steps"] = charts.by_steps(stepped)
    values = {
        "measured": measured,
        "composition": tables,
        "first": measured["composition_first"],
        "candidates": measured["candidates"],
        "distance_names": names,
    }
    return values, figures


def _composition(measured: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for by, key in (("split", "composition_table"), ("language", "composition_language_table")):
        for row in measured[key] or []:
            yield by, {"chance": None, "ceiling": None} | row


def _scores(measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """CLIP scores to hold beside each other, from what ignores its prompt to real pairs."""
    if measured.get("clip_score") is None:
        return {}
    found: dict[str, Any] = {}
    if measured.get("clip_score_chance") is not None:
        found["prompts of others (chance)"] = {"value": measured["clip_score_chance"]}
    if measured.get("clip_score_first"):
        found["first image"] = measured["clip_score_first"]
    interval = measured.get("clip_score_interval") or {}
    found["chosen image"] = {"value": measured["clip_score"]} | interval
    if measured.get("clip_score_validation"):
        found["real pairs"] = measured["clip_score_validation"]
    return found
