"""The work of each stage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config_loading import load_config
from pipeline.planner.catalog import Assumptions
from pipeline.planner.encoders import ClipCost, TextCost
from pipeline.planner.rates import assume_rates
from pipeline.planner.workload import WORKLOADS, PlanFacts, plan_workloads
from pipeline.stages.graph import STAGES
from tests.helpers.plans import SMOKE


def make_facts() -> PlanFacts:
    config, assumptions = load_config(SMOKE), Assumptions()
    text, clip = TextCost("t5", 32, 64, 1, 32, 10, 100.0, ""), ClipCost("clip", "", 8, 100.0)
    sizes = dict.fromkeys(config.train, 10)
    return PlanFacts(
        config,
        assumptions,
        assume_rates(config, assumptions),
        text,
        clip,
        64.0,
        sizes,
        sizes,
        dict.fromkeys(sizes, 1.0),
    )


def test_stages_are_planned_in_the_order_of_the_pipeline() -> None:
    assert list(plan_workloads(make_facts())) == [name for name in STAGES if name in WORKLOADS]


def test_a_new_stage_over_all_pairs_counts_as_one_that_decodes_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "sharpness", replace(STAGES["annotate"], name="sharpness"))
    works = plan_workloads(make_facts())
    assert works["sharpness"] == works["annotate"] and works["sharpness"].images > 0
