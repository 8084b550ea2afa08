"""What judges say of the samples, with the weights and the resolution that they say it with."""

from __future__ import annotations

from typing import Any

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.feature_models import digest_weights
from eval.metrics.judges.registry import JUDGES


class Judgements(Metric):
    """Preference and aesthetic scores, and object-composition protocols: the judges of ``evaluate.judges``."""

    title = "Judges"
    description = "What other models say of every sample."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Key judges: {judge: {title, description, model, weights, resolution, images, values}}; absent without any."""
        found = {}
        for config in judged.judges:
            judge, verdicts = JUDGES[config.kind], judged.verdicts.get(config.key, ())
            found[config.key] = {
                "title": judge.title,
                "description": judge.description,
                **judge.describe(config),
                "weights": digest_weights(config.model),
                "images": len(verdicts),
                "values": judge.summarize(config, verdicts) if verdicts else {},
            }
        return {"judges": found} if found else {}
