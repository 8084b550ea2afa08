"""The model card of an exported cascade, in the form that model hubs read: what it is, what it reaches, its limits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dataprep import storage
from dataprep.grammar import ATTRIBUTES
from eval.settings import CascadeConfig
from pipeline.report.card import FACTS
from pipeline.store import Run
from train.models.export import CONFIG_FILE, WEIGHTS_FILE

NOT_CHOSEN = "not chosen yet: whoever trained this has to say under which licence the weights may be used"


def card(run: Run, config: CascadeConfig, out: Path, weights: str, licence: str | None) -> str:
    """The card as Markdown; ``out`` holds what was exported. A figure that the run does not have is left out."""
    record, artifacts = run.record(), run.artifacts()
    facts = _json(artifacts["card"].path(FACTS)) if "card" in artifacts else {}
    title = (facts.get("about") or {}).get("title") or "A text-to-image cascade"
    lines = ["---", "library_name: imagen-ray", "pipeline_tag: text-to-image"]
    lines += [f"license: {licence}"] if licence else []
    lines += ["---", "", f"# {title}", "", *_use(config), *_parts(config, out, weights)]
    lines += _training(facts, record) + _figures(_json(run.path("metrics.json")))
    lines += ["## Limits", "", *_limits(config, facts), ""]
    lines += ["## Licence", "", f"Of the weights: {licence or NOT_CHOSEN}. The code, imagen-ray, is Apache-2.0.", ""]
    return "\n".join(lines)


def _use(config: CascadeConfig) -> list[str]:
    return [
        f"Imagen-style pixel diffusion (arXiv 2205.11487): a frozen text encoder and {len(config.stages)} stages, "
        f"the last of {config.stages[-1].resolution} pixels.",
        "",
        "```python",
        "from eval.cascade import Cascade",
        "",
        'images = Cascade.from_pretrained("THIS FOLDER")("a prompt", num=4, seed=1).images',
        "```",
        "",
        "Or `imagen-ray sample THIS_FOLDER \"a prompt\" --num 4 --seed 1`.",
        "",
    ]  # fmt: skip


def _parts(config: CascadeConfig, out: Path, weights: str) -> list[str]:
    rows = []
    for stage in config.stages:
        settings = _json(str(out / stage.path / CONFIG_FILE))
        with safe_open(str(out / stage.path / WEIGHTS_FILE), framework="pt") as file:
            tensors = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        count = sum(math.prod(shape) for shape in tensors)
        start = "noise" if stage.low_resolution is None else f"{stage.low_resolution} pixels"
        how = f"{stage.sampling.sampler}, {stage.sampling.steps} evaluations, guidance {stage.sampling.guidance:g}"
        rows.append([stage.name, start, f"{stage.resolution} pixels", f"{count:,}", settings["trained_steps"], how])
    kind = "averages (EMA)" if weights == "ema" else "those of the last update (raw)"
    told = ["stage", "from", "to", "parameters", "updates", "sampled by default"]
    lines = ["## Parts", "", f"Weights are {kind}, float32, safetensors.", "", *_table(told, rows)]
    lines.append(f"Text encoder: `{config.encoder}`, up to {config.max_length} tokens of a prompt.")
    lines += [f"CLIP, to choose the best of several: `{config.clip}`."] if config.clip else []
    lines += ["Images carry an invisible watermark."] if config.watermark else []
    return [*lines, ""]


def _training(facts: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    lines = ["## Training data", ""]
    if facts:
        lines.append(f"{facts['kept']:,} pairs of image and caption, kept of {facts['rows']:,} rows.")
        lines += [f"- {name}: {value}" for name, value in facts["source"].items()]
        lines.append(f"- licences: {_counts(facts['licences']) or 'the list has no column for them'}")
        lines.append(f"- languages of captions: {_counts(facts['languages'])}")
        lines += [f"- notes: {facts['about']['notes']}"] if facts["about"].get("notes") else []
        lines += [f"- removal: {facts['about']['contact']}"] if facts["about"].get("contact") else []
        lines.append("- what was left out and why: datacard.md")
    else:
        lines.append("The run has no data card.")
    made = f"Made {record['started']} at commit {record.get('git_commit')}, seed {record['seed']}."
    return [*lines, "", made, ""]


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    lines = ["## Figures", ""]
    if not metrics:
        return [*lines, "The run was not evaluated.", ""]
    rows = []
    if metrics.get("clip_score") is not None:
        bounds = metrics["clip_score_interval"]
        rows.append(["CLIP score", f"{metrics['clip_score']:.3f} ({bounds['low']:.3f} to {bounds['high']:.3f})"])
    for entry in (metrics.get("distances") or {}).values():
        if entry["fd"] is not None:
            counts = f"{entry['images']} images against {entry['reference_images']}"
            rows.append([entry["name"], f"{entry['fd']:.4f} ({counts}; {entry['model']})"])
    for split, shares in (metrics.get("composition") or {}).items():
        told = ", ".join(f"{name} {shares[name]:.0%}" for name in (*ATTRIBUTES, "all") if name in shares)
        rows.append([f"as asked, {split} prompts", told])
    chosen = (
        f"{metrics['images']} prompts, best of {metrics['candidates']} by CLIP; distances are of first candidates. "
    )
    return [*lines, *_table(["what", "value"], rows), chosen + "metrics.json has all, with intervals.", ""]


def _limits(config: CascadeConfig, facts: Mapping[str, Any]) -> list[str]:
    lines = ["- It draws what its training data shows, with that data's biases; what is not there it cannot draw."]
    if (facts.get("source") or {}).get("source") == "scenes":
        lines.append(
            "- It was trained on drawn scenes of plain shapes alone: a demonstration, not a model of pictures."
        )
    lines.append("- It was trained on square images; other aspects are possible and worse.")
    lines.append(f"- Words beyond {config.max_length} tokens of a prompt are not read.")
    lines.append("- Nothing filters prompts or images.")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines), ""]


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in values.items())


def _json(path: str) -> dict[str, Any]:
    """The JSON at ``path``; empty where there is none."""
    return dict(json.loads(storage.read_bytes(path))) if storage.exists(path) else {}
