"""A metric from outside is computed with the others; two metrics cannot return the same key."""

from __future__ import annotations

from typing import Any

import pytest

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.feature_models import ClipIdentity
from eval.metrics.registry import METRICS, compute_metrics
from eval.sampling.prompts import scene_prompts
from tests.helpers.judged import make_samples

CLIP = ClipIdentity("ViT-B-32", "openai", 224)


class MeanSize(Metric):
    """A metric without a section of its own in the report."""

    title = "Size"
    description = "Mean width of the chosen images."

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        return {"mean width": sum(sample.size for sample in judged.chosen) / len(judged.chosen)}


class SecondClipScore(MeanSize):
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        return {"clip_score": 1.0}


@pytest.fixture
def judged() -> JudgedSamples:
    """Two prompts with two candidates each."""
    samples = [sample for item in scene_prompts(1, 0) for sample in make_samples(item, 1.0, 2)]
    return JudgedSamples(samples)


def test_added_metric_is_in_the_report_part_of_the_values(
    judged: JudgedSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JudgedSamples, "read_pixels", lambda self, keys: {s.key: s.pixels() for s in self.samples})
    assert "more" not in compute_metrics(judged, CLIP)
    monkeypatch.setitem(METRICS, "mean_size", MeanSize())
    more = compute_metrics(judged, CLIP)["more"]
    assert more == {
        "mean_size": {
            "title": "Size",
            "description": "Mean width of the chosen images.",
            "values": {"mean width": 32.0},
        }
    }


def test_key_of_two_metrics_is_refused(judged: JudgedSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JudgedSamples, "read_pixels", lambda self, keys: {s.key: s.pixels() for s in self.samples})
    monkeypatch.setitem(METRICS, "second", SecondClipScore())
    with pytest.raises(ValueError, match="metric second returns 'clip_score', a key of another metric"):
        compute_metrics(judged, CLIP)
