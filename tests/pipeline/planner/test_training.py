"""What a stage's updates cost."""

from __future__ import annotations

import pytest

from pipeline.planner.network import count_forward_flops
from pipeline.planner.training import StageModel
from train.tasks.diffusion_config import DiffusionTrainingConfig


@pytest.mark.parametrize(("early", "share"), [(0, 0.0), (25, 0.25), (500, 1.0)])
def test_updates_at_half_the_size_cost_what_such_images_cost(early: int, share: float) -> None:
    config = DiffusionTrainingConfig(resolution=16, model="micro-base", steps=100, half_size_steps=early)
    model = StageModel("base", config, 128, 12)
    half, full = (count_forward_flops(model.layout, side, 12) for side in (8, 16))
    assert half < full / 2
    assert model.forward == pytest.approx(share * half + (1 - share) * full, abs=1)
    assert model.whole == full
