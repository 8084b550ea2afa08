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

FIT = "sample.fit={stages: [base, sr32], samples: 10, levels: 20}"


def make_facts(*overrides: str) -> PlanFacts:
    config, assumptions = load_config(SMOKE, overrides), Assumptions()
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
    everything = [name for name in STAGES if name in WORKLOADS]
    assert list(plan_workloads(make_facts(FIT))) == everything
    assert list(plan_workloads(make_facts())) == [name for name in everything if name != "schedule"]


def test_evaluations_of_a_fit() -> None:
    fit = plan_workloads(make_facts(FIT))["schedule"]  # an evaluation is one operation here; guided, it is two
    assert (fit.items, fit.flops) == (20, 10 * 20 * 2 * 2)


def test_a_new_stage_over_all_pairs_counts_as_one_that_decodes_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "sharpness", replace(STAGES["annotate"], name="sharpness"))
    works = plan_workloads(make_facts())
    assert works["sharpness"] == works["annotate"] and works["sharpness"].images > 0
