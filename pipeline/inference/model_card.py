"""The model card of an exported cascade in the format of model hubs: parts, training data, metrics, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dataprep.card.facts import describe_source, is_synthetic
from dataprep.io import storage
from dataprep.io.hub import HUB_PREFIX
from dataprep.io.markdown import escape_cell, format_table
from dataprep.io.wording import count_of
from dataprep.synthetic.grammar import ATTRIBUTES
from dataprep.text.config import TOKENS_FILE
from eval.sampling.adapters import AdapterChoice
from eval.sampling.config import CascadeConfig
from pipeline.inference.card_metadata import make_card_metadata
from pipeline.report.audit_tables import tabulate_audits
from pipeline.report.data_card_files import FACTS
from pipeline.stages.initial_weights import describe_origin, read_origin
from pipeline.store.run import Run
from pipeline.units import format_decimal, format_percent
from train.initial_weights.base import read_header
from train.models.distilled import read_distilled
from train.models.export import CONFIG_FILE
from train.models.weight_files import count_parameters

NO_LICENCE = "not chosen yet; whoever trained this model has to choose one"


def render_model_card(
    run: Run,
    config: CascadeConfig,
    out: Path,
    weights: str,
    licence: str | None,
    datasets: Sequence[str] = (),
    adapters: Sequence[AdapterChoice] = (),
) -> str:
    """Returns the card as Markdown; ``out`` holds the export, ``weights`` is ema or raw. Leaves out missing metrics.

    ``adapters`` are those merged into the weights.
    """
    record, artifacts = run.record(), run.artifacts()
    facts = _read_json(artifacts["card"].path(FACTS)) if "card" in artifacts else {}
    title = (facts.get("about") or {}).get("title") or "A text-to-image cascade"
    metrics = _read_json(run.path("metrics.json"))
    origins = {name: origin for name, artifact in artifacts.items() if (origin := read_origin(artifact)) is not None}
    paths = {origin["path"] for origin in origins.values()}
    began = sorted(path.removeprefix(HUB_PREFIX) for path in paths if path.startswith(HUB_PREFIX))
    metadata = make_card_metadata(run, config, facts | {"title": title}, metrics, licence, datasets, began)
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {title}", ""]
    lines += [*_describe_use(config), *_describe_parts(config, out, weights), *_describe_training(facts, record)]
    lines += [*_describe_adapters(adapters), *_describe_origins(origins)]
    lines += [*_describe_metrics(metrics), *_describe_audit(facts, metrics), *_describe_limits(config, facts)]
    lines += ["## Licence", "", f"Weights: {licence or NO_LICENCE}. Code (imagen-ray): Apache-2.0.", ""]
    return "\n".join(lines)


def _describe_use(config: CascadeConfig) -> list[str]:
    return [
        "Pixel-space cascaded diffusion after Imagen (arXiv 2205.11487): a frozen text encoder and "
        f"{count_of(len(config.stages), 'stage')}, up to {config.stages[-1].resolution} pixels.",
        "",
        "```python",
        "from eval.sampling.cascade import Cascade",
        "",
        'images = Cascade.from_pretrained("THIS_FOLDER")("a prompt", num=4, seed=1).images',
        "```",
        "",
        'Or `imagen-ray sample THIS_FOLDER "a prompt" --num 4 --seed 1`.',
        "",
    ]


def _describe_parts(config: CascadeConfig, out: Path, weights: str) -> list[str]:
    rows, stored = [], ""
    for stage in config.entries():
        settings = _read_json(str(out / stage.path / CONFIG_FILE))
        count, stored = count_parameters(out / stage.path)
        start = "noise" if stage.low_resolution is None else f"{stage.low_resolution} pixels"
        sampling = f"{stage.sampling.sampler}, {stage.sampling.count_evaluations()} steps, "
        distilled = read_distilled(settings)
        if distilled is None:
            sampling += f"guidance {stage.sampling.guidance:g}"
        else:
            sampling += f"to which it is distilled, with guidance {distilled.guidance:g} in its weights"
        end = f"{stage.resolution} pixels"
        if stage is config.prior:
            start, end = "caption", "CLIP embedding"
        rows.append([stage.name, start, end, count, settings["trained_steps"], sampling])
    kind = "EMA" if weights == "ema" else "raw (last training step)"
    head = ["stage", "from", "to", "#parameters", "#training steps", "default sampling"]
    lines = ["## Parts", "", f"Weights: {kind}, {stored}, safetensors.", "", *format_table(head, rows), ""]
    lines.append(f"Text encoder: `{config.encoder}`, up to {config.max_length} tokens of a prompt.")
    lines += _describe_words(out / config.encoder)
    uses = "chooses the best of several images" + (
        "" if config.prior is None else ", and whose embeddings are predicted"
    )
    lines += [f"CLIP that {uses}: `{config.clip}`."] if config.clip else []
    lines += ["Images carry an invisible watermark."] if config.watermark else []
    return [*lines, ""]


def _describe_words(encoder: Path) -> list[str]:
    """Returns a line on the words that a text encoder learned by `text_tuning`, if any."""
    path = str(encoder / TOKENS_FILE)
    return [f"Words that it learned: {', '.join(sorted(read_header(path)))}."] if storage.exists(path) else []


def _describe_training(facts: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    lines = ["## Training data", ""]
    if facts:
        lines += [f"{count_of(facts['kept'], 'image-caption pair')}, kept of {count_of(facts['rows'], 'row')}.", ""]
        lines += [f"- source {escape_cell(describe_source(source))}" for source in facts["sources"]]
        lines.append(f"- licences: {_join_counts(facts['licences']) or 'not given by the list'}")
        lines.append(f"- languages of captions: {_join_counts(facts['languages'])}")
        lines += [f"- notes: {facts['about']['notes']}"] if facts["about"].get("notes") else []
        lines += [f"- removal requests: {facts['about']['contact']}"] if facts["about"].get("contact") else []
        lines.append("- what was dropped and why: datacard.md")
    else:
        lines.append("The run has no data card.")
    made = f"Run started {record['started']} at commit {record.get('git_commit')}, seed {record['seed']}."
    return [*lines, "", made, ""]


def _describe_adapters(adapters: Sequence[AdapterChoice]) -> list[str]:
    if not adapters:
        return []
    rows = [[choice.stage, Path(choice.path).name, f"{choice.weight:g}"] for choice in adapters]
    return ["## Adapters in the weights", "", *format_table(["stage", "file", "#weight"], rows), ""]


def _describe_origins(origins: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not origins:
        return []
    rows = [[stage, describe_origin(origin)] for stage, origin in origins.items()]
    return ["## Began from", "", *format_table(["stage", "weights"], rows), ""]


def _describe_metrics(metrics: Mapping[str, Any]) -> list[str]:
    lines = ["## Metrics", ""]
    if not metrics:
        return [*lines, "The run was not evaluated.", ""]
    rows = []
    if metrics.get("clip_score") is not None:
        low, high = (format_decimal(metrics["clip_score_interval"][key]) for key in ("low", "high"))
        rows.append(["CLIP score", f"{format_decimal(metrics['clip_score'])} ({low} to {high})"])
    for entry in (metrics.get("distances") or {}).values():
        if entry["fd"] is not None:
            counts = f"{count_of(entry['images'], 'image')} against {entry['reference_images']}"
            rows.append([entry["name"], f"{format_decimal(entry['fd'], 4)} ({counts}; {entry['model']})"])
    for split, shares in (metrics.get("composition") or {}).items():
        parts = [f"{name} {format_percent(shares[name], 0)}" for name in (*ATTRIBUTES, "all") if name in shares]
        rows.append([f"correct, {split} prompts", ", ".join(parts)])
    prompts = count_of(metrics["images"], "prompt")
    note = f"{prompts}, best of {metrics['candidates']} by CLIP; distances are of first candidates. "
    return [*lines, *format_table(["metric", "value"], rows), "", note + "metrics.json has all, with intervals.", ""]


def _describe_audit(facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Returns who and what is in the training data and in samples; nothing where nothing was found."""
    lines: list[str] = []
    for table in tabulate_audits(facts.get("audit"), metrics.get("audit")):
        lines += [f"{table['title']}:", "", *format_table(table["columns"], table["rows"]), ""]
    note = (
        "Training data beside samples of the judged prompts, counted alike. Words of captions and prompts say who is "
        "named; detectors miss things; CLIP gives one of the labels also where none fits."
    )
    return ["## Audit", "", note, "", *lines] if lines else []


def _describe_limits(config: CascadeConfig, facts: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Limits",
        "",
        "- The model can only generate what its training data shows, with the biases of that data.",
    ]
    if facts.get("sources") and is_synthetic(facts):
        lines.append("- Trained on rendered scenes of simple shapes only: a demonstration, not a general image model.")
    lines.append("- Trained on square images; other aspect ratios are possible and worse.")
    lines.append(f"- Prompts are truncated to {config.max_length} tokens.")
    lines.append("- Neither prompts nor images are filtered.")
    return [*lines, ""]


def _join_counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{escape_cell(name)} {count:,}" for name, count in values.items())


def _read_json(path: str) -> dict[str, Any]:
    """Returns the JSON at ``path``; empty if there is no file."""
    return dict(json.loads(storage.read_bytes(path))) if storage.exists(path) else {}
