"""The points of a sweep."""

from __future__ import annotations

from eval.metrics.config import SweepConfig, make_sweep_points
from eval.sampling.config import SamplingConfig


def test_sweep_points_replace_one_key_each() -> None:
    base = SamplingConfig(guidance=3.0, steps=7)
    points = make_sweep_points(SweepConfig(guidance=(1.0,), samplers=("ddim",)), base)
    assert [point.settings for point in points] == [
        base.model_copy(update={"guidance": 1.0}),
        base.model_copy(update={"sampler": "ddim"}),
    ]
    curves = make_sweep_points(SweepConfig(steps=(2, 4), samplers=("ddim", "ddpm")), base)
    assert [(point.swept, point.settings.sampler, point.settings.steps) for point in curves] == [
        ("steps", sampler, steps) for sampler in ("ddim", "ddpm") for steps in (2, 4)
    ]
