"""Training of each stage: curves, figures, and the grids sampled on the way."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataprep.io import storage
from pipeline.report import charts
from pipeline.report.images import encode_webp_url
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.store.artifact import Artifact

POINTS = 200  # per curve
GRIDS = 7  # steps whose grid is shown, per stage
PARTS = ("data", "forward", "backward", "step")  # of a training step, as the log names them
GRID = re.compile(r"^samples/step-(\d+)\.png$")
NOISE = re.compile(r"^validation_loss_noise_(\d+)of(\d+)$")
LogRow = dict[str, Any]


def collect_training(inputs: ReportInputs) -> SectionContent:
    """Collects a table, grids, and charts of loss, loss by noise level and throughput."""
    logs = {name: storage.read_json_lines(artifact.path("log.jsonl")) for name, artifact in inputs.trained.items()}
    figures = {f"loss_{number}": charts.plot_loss(smooth_log(log), log) for number, log in enumerate(logs.values())}
    by_noise = {name: log for name, log in logs.items() if any(map(read_noise_levels, log))}
    figures |= {
        f"noise_{number}": charts.plot_noise_losses(log, read_noise_levels)
        for number, log in enumerate(by_noise.values())
    }
    rates = {name: smooth_log(log, "samples_per_second") for name, log in logs.items()}
    figures["throughput"] = charts.plot_throughput(rates)
    values = {
        "training": [_summarize_log(name, inputs.artifacts[name], log) for name, log in logs.items()],
        "losses": list(logs),
        "noises": list(by_noise),
        "grids": [grids for name, artifact in inputs.trained.items() if (grids := load_grids(name, artifact))],
    }
    return SectionContent(values, figures)


def _summarize_log(name: str, artifact: Artifact, log: list[LogRow]) -> dict[str, Any]:
    """A row of the table of training stages."""
    found = {key: [row[key] for row in log if row.get(key) is not None] for key in ("loss", "validation_loss", "mfu")}
    rates = [row["samples_per_second"] for row in log if row.get("samples_per_second")]
    counters = artifact.manifest.counters
    parts = {part: [row[f"{part}_ms"] for row in log if f"{part}_ms" in row] for part in PARTS}
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


def smooth_log(log: list[LogRow], key: str = "loss") -> list[LogRow]:
    """Returns about `POINTS` means of ``key`` over runs of equally many rows: the loss per step is mostly noise."""
    rows = [row for row in log if row.get(key) is not None]
    width = max(1, len(rows) // POINTS)
    parts = [rows[start : start + width] for start in range(0, len(rows), width)]
    return [{"step": part[-1]["step"], key: float(np.mean([row[key] for row in part]))} for part in parts]


def read_noise_levels(row: LogRow) -> dict[str, float]:
    """Returns the validation losses of a log row by noise level; "1 of 4" is the least noise."""
    found = {(match[1], match[2]): row[key] for key in row if (match := NOISE.match(key))}
    return {f"{number} of {count}": value for (number, count), value in sorted(found.items())}


def load_grids(name: str, artifact: Artifact) -> dict[str, Any] | None:
    """Returns what a stage sampled for the same captions at some steps, and the real images; None without grids."""
    paths = {int(match[1]): out.path for out in artifact.manifest.outputs if (match := GRID.match(out.path))}
    if not paths:
        return None
    steps = sorted(paths)
    # Samples change most early in training: the steps shown grow geometrically.
    wanted = np.geomspace(steps[0], steps[-1], GRIDS)
    chosen = sorted({min(steps, key=lambda step: abs(math.log(step / want))) for want in wanted.tolist()})
    strips = []
    for step in chosen:
        with Image.open(io.BytesIO(storage.read_bytes(artifact.path(paths[step])))) as grid:
            half = grid.height // 2  # samples above, real images below
            strips.append({"step": step, "src": encode_webp_url(grid.crop((0, 0, grid.width, half)), lossless=True)})
            real = encode_webp_url(grid.crop((0, half, grid.width, grid.height)), lossless=True)
            size = grid.width, half
    return {"stage": name, "strips": strips, "real": real, "width": size[0], "height": size[1]}


SECTION = ReportSection("Training", collect_training, Path(__file__).with_suffix(".html.jinja"))
