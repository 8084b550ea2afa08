"""The metrics of the samples. To add one, write a `Metric` in a file of its own and name it in `METRICS`."""

from __future__ import annotations

from typing import Any

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.best_of import BestOf
from eval.metrics.clip_score import ClipScore
from eval.metrics.composition_accuracy import CompositionAccuracy
from eval.metrics.distances import Distances
from eval.metrics.retrieval import Retrieval
from eval.metrics.sweep import Sweep

METRICS: dict[str, Metric] = {
    "clip_score": ClipScore(),
    "composition": CompositionAccuracy(),
    "best_of": BestOf(),
    "distances": Distances(),
    "retrieval": Retrieval(),
    "sweep": Sweep(),
}


def compute_metrics(judged: JudgedSamples) -> dict[str, Any]:
    """Computes every metric; returns the content of metrics.json.

    Metrics with a section of their own in the report write their keys. The others are in ``more``, for the report to
    list: {name: {title, description, values}}. Raises ValueError for a key that two metrics return.
    """
    values: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for name, metric in METRICS.items():
        found = metric.compute(judged)
        if not metric.has_section:
            more[name] = {"title": metric.title, "description": metric.description, "values": found}
            continue
        if taken := sorted(set(values).intersection(found)):
            raise ValueError(f"metric {name} returns {taken[0]!r}, a key of another metric; rename it")
        values |= found
    return values | ({"more": more} if more else {})
