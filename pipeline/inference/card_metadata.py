"""The metadata block of a model card, as hubs read it: licence, tags, base models, data sets, languages, results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from eval.sampling.config import CascadeConfig
from pipeline.store.run import Run

TAGS = ("text-to-image", "diffusion", "cascade", "pixel-space", "imagen", "imagen-ray")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[A-Za-z][\w.-]*")
HUB_DATASET = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)")
LANGUAGES = 8  # at most


def make_card_metadata(
    run: Run,
    config: CascadeConfig,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    licence: str | None,
    datasets: Sequence[str] = (),
    began: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the block; a key is absent where nothing is known. ``facts`` are those of the data card.

    Base models are those at ``began``, which weights began from, and the encoder and the CLIP if a hub has them by
    name. ``datasets`` are hub names; sources of the list at ``hf://`` are added.
    """
    record = run.record()
    source = [match for text in _find_texts(record.get("config", {})) for match in HUB_DATASET.findall(text)]
    languages = list(facts.get("languages") or {})[:LANGUAGES]
    found: dict[str, Any] = {
        "library_name": "imagen-ray",
        "pipeline_tag": "text-to-image",
        "license": licence,
        "language": [name for name in languages if re.fullmatch(r"[a-z]{2,3}", name)],
        "tags": list(TAGS),
        "base_model": [*began, *(name for name in (config.encoder, config.clip) if name and is_hub_name(name))],
        "datasets": list(dict.fromkeys([*datasets, *source])),
        "metrics": [entry["type"] for entry in list_results(metrics)],
    }
    if results := list_results(metrics):
        found["model-index"] = [{"name": str(facts.get("title") or "cascade"), "results": [_wrap(results, metrics)]}]
    return {key: value for key, value in found.items() if value}


def is_hub_name(name: str) -> bool:
    """Whether a part of a cascade is named as on a hub; parts in the export's own folders are called as those."""
    return bool(HUB_NAME.fullmatch(name)) and name not in ("encoder", "clip") and "/" in name


def list_results(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns type, name and value of the main metrics in metrics.json."""
    found: list[dict[str, Any]] = []
    if metrics.get("clip_score") is not None:
        found.append({"type": "clip_score", "name": "CLIP score", "value": round(metrics["clip_score"], 4)})
    for key, entry in (metrics.get("distances") or {}).items():
        if entry["fd"] is not None:
            found.append({"type": entry["name"], "name": f"{entry['name']} ({entry['model']})"})
            found[-1]["value"] = round(entry["fd"], 4)
        if (cmmd := metrics.get(f"cmmd_{key}")) is not None:
            found.append({"type": f"cmmd_{key}", "name": f"CMMD ({entry['model']})", "value": round(cmmd, 4)})
    for split, shares in (metrics.get("composition") or {}).items():
        if "all" in shares:
            name = f"composition accuracy, {split} prompts"
            found.append({"type": f"composition_{split}", "name": name, "value": round(shares["all"], 4)})
    for key, entry in (metrics.get("judges") or {}).items():
        for label, value in list(entry["values"].items())[:1]:
            number = value["value"] if isinstance(value, Mapping) else value
            if number is not None:
                found.append({"type": key, "name": f"{entry['title']}, {label}", "value": round(number, 4)})
    return found


def _wrap(results: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
    reference = metrics.get("reference") or {}
    what = f"{metrics.get('images')} prompts; distances to {reference.get('what', 'no reference')}"
    return {
        "task": {"type": "text-to-image", "name": "Text-to-image"},
        "dataset": {"type": "evaluation", "name": what},
        "metrics": [dict(entry) for entry in results],
    }


def _find_texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _find_texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _find_texts(item)]
    return [value] if isinstance(value, str) else []
