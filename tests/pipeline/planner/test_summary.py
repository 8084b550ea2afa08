"""The conclusions of a plan."""

from __future__ import annotations

from pipeline.planner.choices import find_cheapest, find_fastest_machine
from pipeline.planner.plan import CostPlan
from pipeline.planner.summary import answer_questions


def test_conclusions_name_the_cheapest_and_the_fastest(plan: CostPlan) -> None:
    lines = list(answer_questions(plan))
    quick, box = find_cheapest(plan.choices), find_fastest_machine(plan.choices)
    assert quick is not None
    assert box is not None
    assert quick.dollars <= min(choice.fewest.dollars for choice in plan.choices if choice.fewest)
    assert box.hours <= min(choice.fewest.hours for choice in plan.choices if choice.fewest)
    assert any(line.startswith("Cheapest") for line in lines)
