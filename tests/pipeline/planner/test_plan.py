"""`imagen-ray plan`: whole plans, mistakes reported in one line, and no Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.cli.main import main
from pipeline.config_loading import load_config
from pipeline.planner.catalog import Assumptions
from pipeline.planner.plan import CostPlan, PlanRequest, encode_plan, make_plan
from pipeline.runtime import ray_session
from tests.helpers.paths import ROOT
from tests.helpers.plans import SMOKE, fail_command, pick_machines
from tests.helpers.priors import WITH_PRIOR
from train.models.base import DenoiserConfig

IMAGEN = str(ROOT / "configs" / "imagen.yaml")


def test_the_command_prints_json_and_tables_and_starts_no_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: CostPlan
) -> None:

    def refuse(config: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_session, "connect_ray", refuse)
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump({"machines": encode_plan(plan)["machines"]}))
    printed = []
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            main(["plan", SMOKE, "--machines", str(path), *options])
        assert caught.value.code == 0
        printed.append(capsys.readouterr().out)
    assert json.loads(printed[1])["stages"] == encode_plan(plan)["stages"]
    headings = ("Networks", "Memory per rank", "Storage", "Training on each machine", "With failures", "Assumptions")
    assert all(heading in printed[0] for heading in headings)
    assert all(name in printed[0] for name in Assumptions.model_fields)


def test_every_stage_has_hours_and_money_and_its_machine(plan: CostPlan) -> None:
    names = [cost.stage for cost in plan.costs]
    data = ["download", "annotate", "encoder", "clip", "score", "select", "pack", "embed"]
    assert names == [*data, "train.base", "train.sr32", "train.sr64", "sample"]
    assert all(cost.hours > 0 and cost.dollars >= 0 for cost in plan.costs)
    on = {cost.stage: cost.machine for cost in plan.costs}
    assert (on["download"], on["embed"], on["train.base"]) == ("cpu-96", "1xH100", "1xH100")
    for cost in plan.costs:
        machine = plan.table.machines[cost.machine]
        assert cost.dollars == pytest.approx(cost.hours * cost.nodes * machine.price)


def test_captions_are_planned_where_a_model_writes_them(capsys: pytest.CaptureFixture[str], plan: CostPlan) -> None:
    overrides = ["caption.model=somebody/vision-2b", "pack.captions={caption: 1.0, short: 1.0}"]
    with pytest.raises(SystemExit) as caught:
        main(["plan", SMOKE, *overrides, "--machine", "1xH100"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and "captions by somebody/vision-2b: 2,000 M parameters (by its name)" in printed
    assert any(line.split()[:1] == ["caption"] and "1xH100" in line for line in printed.splitlines())
    assert plan.captioner is None and "caption" not in plan.works


def test_json_holds_what_is_printed(plan: CostPlan) -> None:
    printed = json.loads(json.dumps(encode_plan(plan)))
    assert [model["stage"] for model in printed["models"]] == ["train.base", "train.sr32", "train.sr64"]
    assert {item["zero"] for item in printed["models"][0]["memory"]} == {0, 1, 2, 3}
    assert printed["training_flops"] == pytest.approx(
        sum(3 * model["forward_flops_a_sample"] * model["samples"] for model in printed["models"])
    )
    codecs = {item["name"] for item in printed["storage"] if item["name"].startswith("embed")}
    assert codecs == {f"embed: {codec}, {how}" for codec in ("float16", "int8") for how in ("none", "zstd")}
    assert printed["stored_bytes"] == pytest.approx(sum(v["bytes"] for v in printed["storage"] if v["chosen"]))
    assert printed["assumptions"] == plan.assumptions.model_dump()


@pytest.mark.slow
def test_the_papers_scale_has_the_papers_parameters() -> None:
    made = make_plan(load_config(IMAGEN), pick_machines("8xH100", "cpu-96"), PlanRequest(machine="8xH100", nodes=8))
    sizes = {model.name: model.parameters for model in made.models}
    assert sizes["base"] == pytest.approx(2e9, rel=0.1)
    assert sizes["sr256"] == pytest.approx(6e8, rel=0.1)
    assert sizes["sr1024"] == pytest.approx(4e8, rel=0.1)
    assert all(model.samples == pytest.approx(5.1e9, rel=0.01) for model in made.models)
    assert made.rates.pairs == pytest.approx(860e6, rel=0.01)
    assert made.chosen is not None
    gpu_seconds = made.chosen.hours * 3600 * 64
    recomputed = 4 / 3  # at most
    assert made.flops <= gpu_seconds * 989e12 * 0.30 <= made.flops * recomputed * 1.25


def test_wrong_machines_and_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "8xH100" in fail_command(capsys, "plan", SMOKE, "--machine", "8xH1000")
    assert "run.json" in fail_command(capsys, "plan", SMOKE, "--measured", str(tmp_path))
    assert "stepz" in fail_command(capsys, "plan", SMOKE, "train.base.stepz=3")
    line = fail_command(capsys, "plan", SMOKE, "--machine", "1xH100", "--nodes", "3")
    assert "--nodes 3" in line
    assert "multiple" in line


def test_a_prior_counts_among_networks_storage_and_samples(plan: CostPlan) -> None:
    table = pick_machines("1xH100", "cpu-96")
    made = make_plan(
        load_config(SMOKE, [*WITH_PRIOR, "sample.stages.prior={steps: 5, guidance: 1.0}"]), table, PlanRequest()
    )
    found = {model.name: model for model in made.models}
    prior, base = found["prior"], found["base"]
    assert isinstance(base.layout, DenoiserConfig)
    assert (prior.side, prior.layout.image_channels, base.layout.image_embedding_dim) == (1, 64, 64)
    assert 0 < prior.forward < base.forward and "train.prior" in [cost.stage for cost in made.costs]
    volumes = {volume.name: volume.bytes for volume in made.volumes}
    assert volumes["pack: clip_embedding"] == pytest.approx(128 * made.rates.pairs)
    images, before = made.works["sample"].items, next(model for model in plan.models if model.name == "base")
    grown = made.works["sample"].flops - plan.works["sample"].flops
    # The prior: five evaluations of two candidates for each image. The decoder: three, guided, with more tokens.
    assert grown == pytest.approx(images * (5 * 2 * prior.forward + 3 * 2 * (base.whole - before.whole)))


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ([], {"base": 1, "sr32": 1}),
        (["cluster.ranks=2", "cluster.stages={train.base: {ranks: 4}}"], {"base": 4, "sr32": 2}),
    ],
)
def test_memory_is_that_of_a_stages_own_ranks(changes: list[str], ranks: dict[str, int]) -> None:
    made = make_plan(load_config(SMOKE, changes), pick_machines("1xH100", "cpu-96"), PlanRequest())
    found = {
        model.name: (made.ranks_of(model), made.memories(model)[0][1], model.config.batch_size) for model in made.models
    }
    assert {name: one[0] for name, one in found.items() if name in ranks} == ranks
    assert all(micro * ranks == batch for ranks, micro, batch in found.values())
