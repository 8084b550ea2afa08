"""Failures of machines in a plan."""

from __future__ import annotations

from pipeline.planner.failures import simulate_plan
from pipeline.planner.plan import CostPlan


def test_failures_only_lengthen_the_plan_and_follow_the_seed(plan: CostPlan) -> None:
    simulated = simulate_plan(plan, 3)
    assert simulated == simulate_plan(plan, 3)
    assert simulated is not None
    assert simulated.worst >= simulated.mean >= simulated.quiet * 0.999
    stages = {cost.stage: cost.hours for cost in plan.costs}
    alone = sum(stages[name] for name in ("train.base", "train.sr32", "train.sr64"))
    assert simulated.quiet >= alone
