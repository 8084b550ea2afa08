"""CLIP score, distances and composition accuracy along the settings of a stage's sampler."""

from __future__ import annotations

from typing import Any

from dataprep.io.parquet import read_table
from eval.metrics.base import JudgedSamples, MeasuredFeatures, Metric, SweptSetting
from eval.metrics.cmmd import measure_cmmd
from eval.metrics.distances import describe_distances
from eval.metrics.feature_sets import SWEEP_SET
from eval.metrics.feature_tables import collect_features
from eval.metrics.intervals import bootstrap_mean


class Sweep(Metric):
    """The same prompts and seeds at every setting of ``evaluate.sweep``."""

    title = "Sampler settings"
    description = "The same prompts and seeds at other settings of a stage's sampler."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Key sweep: a row per setting; empty without a sweep."""
        features = judged.features
        return {"sweep": [_measure_setting(item, features) for item in judged.sweep] if features else []}


def _measure_setting(swept: SweptSetting, features: MeasuredFeatures) -> dict[str, Any]:
    collected = collect_features([swept.path], features.subsample, swept.size)
    checks = read_table(swept.path, "features", ["right"])["right"].to_pylist()
    correct = [value for value in checks if value is not None]
    scores = [float(image_D @ text_D) for image_D, text_D, _ in collected.pairs[SWEEP_SET].taken()]
    row: dict[str, Any] = {"swept": swept.point.swept, "stage": swept.stage, "size": swept.size}
    row |= swept.point.settings.model_dump()
    row |= {"images": len(scores), "clip_score": bootstrap_mean(scores)}
    row["accuracy"] = sum(correct) / len(correct) if correct else None
    for space in features.spaces:
        real = features.sets.get((features.reference, swept.size, space.key))
        fake = collected.sets.get((SWEEP_SET, swept.size, space.key))
        found = describe_distances(real, fake, space)
        row[space.name] = found["fd"]
        row |= (
            {space.cmmd_name: measure_cmmd(real, fake, space)}
            if space.unit_length
            else {f"kid_{space.key}": found["kid"]}
        )
    return row
