"""The metrics of the samples. To add one, write a `Metric` in a file of its own and name it in `METRICS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.metrics.audit import Audit
from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.best_of import BestOf
from eval.metrics.clip_score import ClipScore
from eval.metrics.cmmd import Cmmd
from eval.metrics.composition_accuracy import CompositionAccuracy
from eval.metrics.distances import Distances
from eval.metrics.feature_models import ClipIdentity
from eval.metrics.judgements import Judgements
from eval.metrics.likelihood import Likelihood
from eval.metrics.memorisation import Memorisation
from eval.metrics.retrieval import Retrieval
from eval.metrics.sweep import Sweep

METRICS: dict[str, Metric] = {
    "clip_score": ClipScore(),
    "composition": CompositionAccuracy(),
    "best_of": BestOf(),
    "distances": Distances(),
    "cmmd": Cmmd(),
    "retrieval": Retrieval(),
    "sweep": Sweep(),
    "judges": Judgements(),
    "memorisation": Memorisation(),
    "likelihood": Likelihood(),
    "audit": Audit(),
}


def compute_metrics(
    judged: JudgedSamples, clip: ClipIdentity, spec: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """Computes every metric; returns the content of metrics.json.

    Metrics with a section of their own in the report write their keys. The others are in ``more``, for the report to
    list: {name: {title, description, values}}. ``spec`` is what `ClipScorer.load` takes, where the CLIP has a name.
    Raises ValueError for a key that two metrics return.
    """
    count = len(judged.chosen)
    values: dict[str, Any] = {"images": count, "candidates": len(judged.samples) // max(1, count)}
    values["clip"] = dict(spec or {}) | {"digest": clip.weights, "resolution": clip.resolution}
    more: dict[str, Any] = {}
    for name, metric in METRICS.items():
        found = metric.compute(judged)
        if not metric.has_section:
            if not found:  # was not requested
                continue
            more[name] = {"title": metric.title, "description": metric.description, "values": found}
            continue
        if taken := sorted(set(values).intersection(found)):
            raise ValueError(f"metric {name} returns {taken[0]!r}, a key of another metric; rename it")
        values |= found
    return values | ({"more": more} if more else {})
