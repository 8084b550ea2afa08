"""The work of each stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dataprep.filters.config import SelectConfig
from dataprep.filters.pair_shards import MAX_GROUPS
from pipeline.config_loading import load_config
from pipeline.planner.catalog import Assumptions, load_table
from pipeline.planner.detectors import estimate_detector_seconds
from pipeline.planner.encoders import CaptionerCost, ClipCost, TextCost
from pipeline.planner.rates import assume_rates
from pipeline.planner.workload import WORKLOADS, PlanFacts, Workload, estimate_hours, plan_workloads
from pipeline.stages.graph import STAGES
from tests.helpers.paths import ROOT
from tests.helpers.plans import SMOKE

FIT = "sample.fit={stages: [base, sr32], samples: 10, levels: 20}"
DISTILLED = "train.base.distillation={teacher: runs/other, steps: 2}"


def make_facts(*overrides: str, path: str = SMOKE) -> PlanFacts:
    config, assumptions = load_config(path, overrides), Assumptions()
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
    everything = [name for name in STAGES if name in WORKLOADS and name not in ("text_tuning", "caption")]
    assert list(plan_workloads(make_facts(FIT))) == everything
    assert list(plan_workloads(make_facts())) == [name for name in everything if name != "schedule"]


def test_images_are_decoded_by_every_stage_that_reads_them() -> None:
    facts = make_facts()
    decoded = {name: work.images for name, work in plan_workloads(facts).items() if work.images}
    every, kept = facts.rates.images, facts.rates.pairs
    assert decoded == {"annotate": every, "score": every, "pack": kept} and kept < every


def test_evaluations_of_a_fit_and_of_a_distilled_stage() -> None:
    fit = plan_workloads(make_facts(FIT))["schedule"]  # an evaluation is one operation here; guided, it is two
    assert (fit.items, fit.flops) == (20, 10 * 20 * 2 * 2)
    plain = plan_workloads(make_facts())["sample"]
    distilled = plan_workloads(make_facts("train.base.task=distillation", DISTILLED, "sample.stages.base={}"))["sample"]
    images = 2 * (2 + 8)  # shown and evaluated prompts, two candidates each
    assert plain.flops - distilled.flops == images * (3 * 2 - 2)  # three guided steps, or two in one pass each


def test_tuning_the_encoder_goes_forward_and_back_through_both_networks() -> None:
    facts = make_facts(path=str(ROOT / "configs" / "textual_inversion.yaml"))
    (tuned,) = [work for name, work in plan_workloads(facts).items() if name == "text_tuning"]
    assert facts.config.text_tuning is not None and "text_tuning" not in plan_workloads(make_facts())
    assert tuned.items == 200 * 16
    assert tuned.flops == 2 * tuned.items * (1.0 + facts.rates.tokens * facts.text.flops_per_token)


def test_captions_are_written_by_the_planned_model() -> None:
    captions = ("caption.model=vision-2b", "pack.captions={caption: 1.0, short: 1.0}", "caption.batch_size=10")
    facts = replace(make_facts(*captions), captioner=CaptionerCost("vision-2b", 2e9, ""))
    assumed = Assumptions(image_tokens=500, prompt_tokens=50, answer_batch=100)
    work = plan_workloads(replace(facts, assumptions=assumed))["caption"]
    assert (work.pool, work.items, work.images) == ("gpu", facts.rates.pairs, facts.rates.pairs)
    # 40 tokens at most, ten answers side by side: as slow as a hundred.
    assert work.flops == pytest.approx(facts.rates.pairs * 2 * 2e9 * (550 + 40 * 10))
    both = replace(facts, config=load_config(SMOKE, [captions[0], "pack.captions={short: 1.0, long: 1.0}"]))
    assert plan_workloads(both)["caption"].items == 2 * facts.rates.pairs


def test_a_new_stage_over_all_pairs_counts_as_one_that_decodes_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "sharpness", replace(STAGES["annotate"], name="sharpness"))
    works = plan_workloads(make_facts())
    assert works["sharpness"] == works["annotate"] and works["sharpness"].images > 0


def test_detectors_are_counted_in_annotate() -> None:
    plain, facts = plan_workloads(make_facts())["annotate"], make_facts("annotate.faces={detector: cascade}")
    found = plan_workloads(facts)["annotate"]
    searched = estimate_detector_seconds(facts.config.annotate, facts.config.download, facts.assumptions)
    assert plain.core_seconds == 0 < searched
    assert found == replace(plain, core_seconds=facts.rates.images * searched)


def plan_select(images: int, **rules: Any) -> Workload:
    facts = make_facts()
    config = facts.config.model_copy(update={"select": SelectConfig(**rules)})
    rates = replace(facts.rates, urls=images, success=1.0)
    return plan_workloads(replace(facts, config=config, rates=rates))["select"]


def test_select_takes_longer_per_row_the_more_rows_there_are_and_uses_all_machines() -> None:
    small, large = plan_select(10**6), plan_select(10**10)
    assert large.core_seconds / 10**10 > 1.5 * small.core_seconds / 10**6  # more sorts find the near duplicates
    off = plan_select(10**6, near_duplicate_bits=None)
    assert off.core_seconds == pytest.approx(10**6 * Assumptions().select_us * 1e-6)
    machine = load_table().machines["cpu-96"]
    hours = [estimate_hours(large, machine, nodes, Assumptions()).hours for nodes in (1, 10, 1000, 2000)]
    assert hours[0] == pytest.approx(10 * hours[1])
    assert hours[2] == hours[3]  # no more than `MAX_GROUPS` tasks at a time
    assert small.tasks == 8 and large.tasks == MAX_GROUPS


def test_what_select_exchanges_passes_the_network() -> None:
    off, large = plan_select(10**6, near_duplicate_bits=None), 10**9
    assert off.bytes == 10**6 * Assumptions().select_row_kb * 1e3
    hashes = plan_select(10**6).bytes - off.bytes
    assert hashes == 10**6 * 7 * 16 * 2  # 7 prefixes of 16 bytes, written and read
    assert plan_select(large).bytes - plan_select(large, near_duplicate_bits=None).bytes > 10 * large / 10**6 * hashes
    by_cosine = plan_select(10**6, near_duplicate_bits=None, near_duplicate_cosine=0.96, near_duplicate_probes=3)
    assert by_cosine.bytes - off.bytes == 10**6 * 3 * (16 + 2 * 8) * 2  # features of 8 dimensions


def test_duplicates_by_embedding_are_planned_as_arithmetic() -> None:
    assert plan_select(10**6).flops == 0
    four, eight = (plan_select(10**6, near_duplicate_cosine=0.96, near_duplicate_probes=n) for n in (4, 8))
    assert 0 < four.flops < eight.flops
    every = plan_select(10**6, near_duplicate_cosine=0.96, near_duplicate_clusters=1)
    assert every.flops > 100 * four.flops
