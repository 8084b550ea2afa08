"""How the models learned: curves, figures, and what they drew on the way."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from dataprep import storage
from pipeline.report import charts
from pipeline.report.images import webp_url
from pipeline.store import Artifact

POINTS = 200  # of a curve
GRIDS = 7  # steps of which a stage's grid is shown
GRID = re.compile(r"^samples/step-(\d+)\.png$")
NOISE = re.compile(r"^validation_loss_noise_(\d+)of(\d+)$")
Row = dict[str, Any]


def trained(artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The stages that have learned something."""
    return {name: artifact for name, artifact in artifacts.items() if artifact.has("log.jsonl")}


def learning(artifacts: Mapping[str, Artifact]) -> tuple[dict[str, Any], dict[str, charts.Figure]]:
    """What the section shows, and its charts: a loss curve a stage, losses by noise level, throughput."""
    logs = {name: storage.read_json_lines(a.path("log.jsonl")) for name, a in trained(artifacts).items()}
    figures = {f"loss_{number}": charts.loss(smoothed(log), log) for number, log in enumerate(logs.values())}
    noisy = {name: log for name, log in logs.items() if any(map(noise_levels, log))}
    figures |= {f"noise_{number}": charts.noise(log, noise_levels) for number, log in enumerate(noisy.values())}
    figures["throughput"] = charts.throughput({name: smoothed(log, "samples_per_second") for name, log in logs.items()})
    values = {
        "training": [_figures(name, artifacts[name], log) for name, log in logs.items()],
        "losses": list(logs),
        "noises": list(noisy),
        "learned": [shown for name, artifact in trained(artifacts).items() if (shown := grids(name, artifact))],
    }
    return values, figures


def _figures(name: str, artifact: Artifact, log: list[Row]) -> dict[str, Any]:
    """A line of the table of training stages."""
    found = {key: [row[key] for row in log if row.get(key) is not None] for key in ("loss", "validation_loss", "mfu")}
    rates = [row["samples_per_second"] for row in log if row.get("samples_per_second")]
    counters = artifact.manifest.counters
    parts = {part: [row[f"{part}_ms"] for row in log if f"{part}_ms" in row] for part in charts.PARTS}
    return {
        "stage": name,
        "parameters": counters.get("parameters", 0),
        "steps": log[-1]["step"] if log else 0,
        "loss": float(np.mean(found["loss"][-10:])) if found["loss"] else None,
        "validation": found["validation_loss"][-1] if found["validation_loss"] else None,
        "rate": float(np.median(rates)) if rates else None,
        "parts": " / ".join(f"{np.median(values):.0f}" for values in parts.values() if values),
        "memory": max((row["memory_mb"] for row in log if row.get("memory_mb")), default=None),
        "mfu": float(np.median(found["mfu"])) if found["mfu"] else None,
        "skipped": counters.get("skipped", 0),
        "resumed": counters.get("resumed_from", 0),
        "spikes": sum(1 for row in log if row.get("spike")),
    }


def smoothed(log: list[Row], key: str = "loss") -> list[Row]:
    """At most about `POINTS` means of ``key`` over equal runs of rows: a loss a step is mostly noise."""
    rows = [row for row in log if row.get(key) is not None]
    width = max(1, len(rows) // POINTS)
    parts = [rows[start : start + width] for start in range(0, len(rows), width)]
    return [{"step": part[-1]["step"], key: float(np.mean([row[key] for row in part]))} for part in parts]


def noise_levels(row: Row) -> dict[str, float]:
    """The validation losses of a log row by noise level: "1 of 4" is the least noise."""
    found = {(match[1], match[2]): row[key] for key in row if (match := NOISE.match(key))}
    return {f"{number} of {count}": value for (number, count), value in sorted(found.items())}


def grids(name: str, artifact: Artifact) -> dict[str, Any] | None:
    """What a stage drew for the same captions at some of its steps, and the true pictures; None where it drew none."""
    paths = {int(match[1]): out.path for out in artifact.manifest.outputs if (match := GRID.match(out.path))}
    if not paths:
        return None
    steps = sorted(paths)
    # Most is learned early: steps are shown by about equal factors.
    wanted = np.geomspace(steps[0], steps[-1], GRIDS)
    chosen = sorted({min(steps, key=lambda step: abs(math.log(step / want))) for want in wanted.tolist()})
    strips = []
    for step in chosen:
        with Image.open(io.BytesIO(storage.read_bytes(artifact.path(paths[step])))) as grid:
            half = grid.height // 2  # drawn ones above, true ones below
            strips.append({"step": step, "src": webp_url(grid.crop((0, 0, grid.width, half)), lossless=True)})
            true = webp_url(grid.crop((0, half, grid.width, grid.height)), lossless=True)
            size = grid.width, half
    return {"stage": name, "strips": strips, "true": true, "width": size[0], "height": size[1]}
