"""CLIP score of the chosen images and of the first ones, with intervals."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.intervals import bootstrap_mean


class ClipScore(Metric):
    """Mean cosine similarity of images with their prompts, by the run's CLIP."""

    title = "CLIP score"
    description = "Mean cosine similarity of images with their prompts."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Keys: clip_score and clip_score_interval of chosen images, clip_score_first, clip_score_by split."""
        if not judged.chosen:
            return {"clip_score": None, "clip_score_interval": None, "clip_score_first": None, "clip_score_by": {}}
        score = bootstrap_mean([sample.clip_score for sample in judged.chosen])
        by_split = defaultdict(list)
        for sample in judged.chosen:
            by_split[sample.split].append(sample.clip_score)
        return {
            "clip_score": score["value"],
            "clip_score_interval": {"low": score["low"], "high": score["high"]},
            "clip_score_first": bootstrap_mean([sample.clip_score for sample in judged.first]),
            "clip_score_by": {name: bootstrap_mean(values) | {"n": len(values)} for name, values in by_split.items()},
        }
