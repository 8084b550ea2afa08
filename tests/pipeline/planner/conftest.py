"""A plan that the tests of the planner read."""

from __future__ import annotations

import pytest

from pipeline.config_loading import load_config
from pipeline.planner.plan import CostPlan, PlanRequest, make_plan
from tests.helpers.plans import SMOKE, pick_machines


@pytest.fixture(scope="session")
def plan() -> CostPlan:
    """The smoke config on an H100 and a server without GPUs."""
    return make_plan(load_config(SMOKE), pick_machines("1xH100", "cpu-96"), PlanRequest())
