"""Composition accuracy of the samples by split and by language, against chance and the checker's ceiling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dataprep.synthetic.renderer import draw_scene
from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.composition import check_image, measure_chance, sum_checks
from eval.metrics.intervals import wilson_interval
from eval.metrics.samples_table import JudgedSample, SampleKey
from eval.sampling.prompts import hash_prompt

CHANCE_IMAGES = 500  # images per group, at most, that chance and ceiling are measured on


class CompositionAccuracy(Metric):
    """Share of images that show what their prompts say, per attribute; empty for prompts without claims."""

    title = "Composition"
    description = "Share of images that show what their prompts say."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Keys: composition (by split), composition_table, composition_first, composition_language and its table."""
        by_split, by_language = _tabulate_groups(judged, "split"), _tabulate_groups(judged, "language")
        return {
            "composition_table": by_split,
            "composition": _accuracies(by_split, "split"),
            "composition_first": _first_accuracies(judged.first),
            "composition_language": _accuracies(by_language, "language"),
            "composition_language_table": by_language,
        }


def _tabulate_groups(judged: JudgedSamples, by: Literal["split", "language"]) -> list[dict[str, Any]]:
    groups: dict[str, list[JudgedSample]] = defaultdict(list)
    for sample in judged.chosen:
        if sample.claim is not None:
            groups[getattr(sample, by)].append(sample)
    keys = {sample.key for samples in groups.values() for sample in samples[:CHANCE_IMAGES]}
    pixels = judged.read_pixels(keys)
    names = sorted(groups, reverse=by == "split")  # "seen" before "heldout", "en" before "zh"
    return [{by: name, **row} for name in names for row in _tabulate(groups[name], pixels)]


def _tabulate(samples: Sequence[JudgedSample], pixels: Mapping[SampleKey, np.ndarray]) -> list[dict[str, Any]]:
    """Returns a row per attribute: accuracy with its 95% Wilson interval, chance, ceiling and n."""
    few = samples[:CHANCE_IMAGES]
    by_chance = measure_chance([(pixels[sample.key], sample.claim) for sample in few if sample.claim])
    ceiling = _measure_ceiling(few)
    table = []
    for attribute, entry in sum_checks([sample.checks or {} for sample in samples]).items():
        count = int(entry["n"])
        found = {"chance": by_chance.get(attribute), "ceiling": ceiling.get(attribute), "accuracy": entry["accuracy"]}
        found |= wilson_interval(round(entry["accuracy"] * count), count)
        table.append({"attribute": attribute, **found, "n": count})
    return table


def _measure_ceiling(samples: Sequence[JudgedSample]) -> dict[str, float]:
    """Returns the checker's accuracy on true drawings of the same prompts and size: below 1 the checker errs."""
    results = []
    for sample in samples:
        if sample.claim is not None:
            image_HWC = draw_scene(sample.claim, np.random.default_rng(hash_prompt(sample.prompt)), sample.size)
            results.append(check_image(image_HWC, sample.claim))
    return {name: entry["accuracy"] for name, entry in sum_checks(results).items()}


def _first_accuracies(first: Sequence[JudgedSample]) -> dict[str, dict[str, float]]:
    splits: dict[str, list[dict[str, bool]]] = defaultdict(list)
    for sample in first:
        if sample.claim is not None:
            splits[sample.split].append(sample.checks or {})
    return {
        name: {key: entry["accuracy"] for key, entry in sum_checks(checks).items()}
        for name, checks in sorted(splits.items(), reverse=True)
    }


def _accuracies(table: Sequence[Mapping[str, Any]], by: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in table:
        found[row[by]][row["attribute"]] = row["accuracy"]
    return dict(found)
