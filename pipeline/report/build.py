"""Puts the report together from artifacts: what the page shows is collected here, how it looks is in the template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from dataprep import storage
from dataprep.card import most
from dataprep.schema import UserError, read_table
from pipeline.report import charts
from pipeline.report.card import FACTS
from pipeline.report.images import dropped_examples, kept_examples, png_url
from pipeline.store import Artifact, Run

HERE = Path(__file__).parent
SECTIONS = (
    ("summary", "Summary"),
    ("samples", "Samples"),
    ("metrics", "Metrics"),
    ("funnel", "Funnel"),
    ("data", "Data"),
    ("training", "Training"),
    ("run", "Run"),
)
EXAMPLES, JUDGED, SHOWN_SIDE = 6, 48, 256


def publish_report(run: Run) -> str:
    """Builds the report of a finished run from its artifacts and writes RUN/report.html; returns its path."""
    artifacts = run.artifacts()
    missing = [stage for stage in run.record()["stages"] if stage not in artifacts and stage != "report"]
    if missing:
        raise UserError(f"{run.root}: {missing[0]} is not finished; `imagen-ray run` the config to its end first")
    storage.write_bytes(run.path("report.html"), build(artifacts, run.record()).encode())
    return run.path("report.html")


def build(artifacts: Mapping[str, Artifact], record: Mapping[str, Any]) -> str:
    """The page as one self-contained HTML text."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.jinja")
    trained = {name: artifact for name, artifact in artifacts.items() if name.startswith("train.")}
    metrics = storage.read_json(artifacts["evaluate"].path("metrics.json"))
    values = {
        "title": f"imagen-ray: {Path(str(record['run'])).name}",
        "sections": SECTIONS,
        "started": record["started"],
        "seed": record["seed"],
        "commit": record["git_commit"],
        "versions": record["versions"],
        "config": yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True),
        "cascade": [name.removeprefix("train.") for name in trained],
        "tiles": _tiles(artifacts, metrics),
        **_samples(artifacts["sample"]),
        "composition": metrics["composition_table"],
        "first": metrics["composition_first"],
        "candidates": metrics["candidates"],
        "measured": dict.fromkeys(("distances", "best_of", "retrieval", "sweep")) | metrics,  # an older one has fewer
        **_funnel(artifacts),
        **_training(artifacts),
        **_lineage(artifacts),
        **_card(artifacts),
        "css": (HERE / "page.css").read_text(),
        "js": (HERE / "page.js").read_text(),
        "plotly": get_plotlyjs(),
    }
    values["charts"] = _charts(artifacts, metrics, values)
    return page.render(**values)


def _tiles(artifacts: Mapping[str, Artifact], metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    selected = artifacts["select"].manifest.counters
    seconds = sum(artifact.manifest.seconds for artifact in artifacts.values())
    tiles = [
        {"label": "rows in", "value": f"{selected['rows']:,}"},
        {"label": "pairs kept", "value": f"{selected['kept']:,}"},
        {"label": "minutes of work", "value": f"{seconds / 60:.1f}"},
    ]
    if metrics.get("clip_score") is not None:
        tiles.append({"label": "CLIP score of samples", "value": f"{metrics['clip_score']:.3f}"})
    for split, figures in metrics.get("composition", {}).items():
        for attribute in ("colour", "shape", "size", "position", "all"):
            if attribute in figures:
                label = f"{attribute} right, {split}" if attribute != "all" else f"all right at once, {split}"
                tiles.append({"label": label, "value": f"{100 * figures[attribute]:.0f}%"})
    return tiles


def _samples(artifact: Artifact) -> dict[str, Any]:
    """The showcase (a ladder of resolutions a prompt) and the judged pictures."""
    ladders: dict[tuple[str, int], dict[str, Any]] = {}
    judged: list[dict[str, Any]] = []
    for path in artifact.files():
        for row in read_table(path, "samples").to_pylist():
            if row["role"] == "show":
                key = (row["prompt"], row["seed"])
                item = ladders.setdefault(key, {"prompt": row["prompt"], "seed": row["seed"], "images": []})
                item["images"].append({"src": png_url(row["png"]), "size": row["size"]})
                item["score"] = row["clip_score"]
            elif row["chosen"] and len(judged) < JUDGED:
                right = json.loads(row["checks"]) if row["checks"] else {}
                wrong = [name for name, value in right.items() if not value and name != "all"]
                note = "wrong: " + ", ".join(wrong) if wrong else ("all as asked" if right else "")
                verdict = right.get("all") if right else None
                judged.append({"prompt": row["prompt"], "src": png_url(row["png"]), "right": verdict, "wrong": note})
    for item in ladders.values():
        item["images"].sort(key=lambda image: image["size"])
        for image in item["images"]:
            image["size"] = min(max(image["size"], 64), SHOWN_SIDE)
    return {"shown": list(ladders.values()), "judged": judged}


def _funnel(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    select = artifacts["select"]
    # null for a user's own list: only the embedded corpus knows what trouble was planted in it.
    quality = storage.read_json(select.path("quality.json")) or {"troubles": {}, "filters": {}}
    percent = "{:.1%}".format
    return {
        "funnel": storage.read_json(select.path("funnel.json")),
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
            {
                "filter": name,
                "dropped": value["dropped"],
                "precision": percent(value["precision"]) if value["precision"] is not None else "",
                "recall": percent(value["recall"]) if value["recall"] is not None else "",
            }
            for name, value in quality["filters"].items()
        ],
        "dropped": dropped_examples(artifacts["download"], select, EXAMPLES),
        "kept": kept_examples(artifacts["download"], select, 12),
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


def _trained(artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {name: artifact for name, artifact in artifacts.items() if artifact.has("log.jsonl")}


def _training(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    rows = []
    for name, artifact in _trained(artifacts).items():
        log = storage.read_json_lines(artifact.path("log.jsonl"))
        losses = [row["loss"] for row in log if row.get("loss") is not None]
        validation = [row["validation_loss"] for row in log if row.get("validation_loss") is not None]
        rates = [row["samples_per_second"] for row in log if row.get("samples_per_second")]
        rows.append(
            {
                "stage": name,
                "parameters": f"{artifact.manifest.counters.get('parameters', 0):,}",
                "steps": f"{log[-1]['step']:,}" if log else "0",
                "loss": f"{np.mean(losses[-10:]):.4f}" if losses else "",
                "validation": f"{validation[-1]:.4f}" if validation else "",
                "rate": f"{np.median(rates):.0f}" if rates else "",
            }
        )
    return {"training": rows}


def _lineage(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    rows, quarantined = [], []
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        rows.append(
            {
                "stage": name,
                "fingerprint": manifest.fingerprint[:12],
                "seconds": f"{manifest.seconds:.1f}",
                "files": len(manifest.outputs),
                "bytes": f"{sum(output.bytes for output in manifest.outputs):,}",
                "inputs": ", ".join(manifest.inputs),
                "counters": ", ".join(f"{key} {count:,}" for key, count in manifest.counters.items()),
            }
        )
        quarantined += [{"stage": name, **item} for item in manifest.quarantined]
    return {"lineage": rows, "quarantined": quarantined}


def _charts(artifacts: Mapping[str, Artifact], metrics: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    logs = {
        name: _smoothed(storage.read_json_lines(artifact.path("log.jsonl")))
        for name, artifact in _trained(artifacts).items()
    }
    similarity = _column(artifacts["score"], "scores", "clip_similarity")
    captions = _column(artifacts["annotate"], "annotations", "caption_chars")
    seconds = {name: artifact.manifest.seconds for name, artifact in artifacts.items()}
    drawn = {
        "funnel": charts.funnel(values["funnel"]),
        "losses": charts.losses(logs),
        "similarity": charts.histogram(similarity, "CLIP similarity"),
        "captions": charts.histogram(captions, "characters"),
        "durations": charts.durations(seconds),
    }
    if metrics.get("composition"):
        drawn["composition"] = charts.composition(metrics["composition"])
    if metrics.get("sweep"):
        drawn["sweep"] = charts.sweep(metrics["sweep"])
    return {"composition": "", "sweep": ""} | {name: charts.to_json(figure) for name, figure in drawn.items()}


def _smoothed(rows: list[dict[str, Any]], points: int = 200) -> list[dict[str, Any]]:
    """At most ``points`` means over equal runs of steps: a loss a step is mostly noise."""
    rows = [row for row in rows if row.get("loss") is not None]
    width = max(1, len(rows) // points)
    parts = [rows[start : start + width] for start in range(0, len(rows), width)]
    return [{"step": part[-1]["step"], "loss": float(np.mean([row["loss"] for row in part]))} for part in parts]


def _column(artifact: Artifact, kind: str, name: str) -> list[float]:
    found: list[float] = []
    for path in artifact.files():
        found += [round(value, 4) for value in read_table(path, kind, [name])[name].to_pylist() if value is not None]
    return found
