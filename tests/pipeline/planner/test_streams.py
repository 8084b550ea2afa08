"""Stages that stream, in a plan: which run at the same time, how long they take, and what that costs."""

from __future__ import annotations

from dataclasses import asdict
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from pipeline.config_loading import load_config
from pipeline.planner.catalog import Assumptions, Machine, MachineCatalog
from pipeline.planner.failures import find_inputs, name_queues, simulate_plan
from pipeline.planner.plan import CostPlan, PlanRequest, encode_plan, make_plan
from pipeline.planner.render import render_plan
from pipeline.planner.streams import estimate_shared_hours, group_stages, plan_stream
from pipeline.planner.workload import WORKLOADS, Workload, estimate_hours
from pipeline.units import HOUR
from tests.helpers.paths import ROOT
from tests.helpers.plans import SMOKE, pick_machines

STREAM = "cluster.stream=true"
CAPTIONS = ("caption.model=vision-2b", "pack.captions={caption: 1.0, short: 1.0}")
DATA = ("download", "annotate")
MANY = PlanRequest(urls=10**9)


def make_machine(gpus: int, cores: int = 10) -> Machine:
    """A machine on which an hour is 3600 x cores core-seconds, 3600 x 10^12 operations, or 3600 x 10^9 bytes."""
    sizes: dict[str, Any] = {"memory_gb": 1, "ram_gb": 1, "network_gbit": 8, "internet_gbit": 8, "price": 2.0}
    return Machine(gpus=gpus, device="", tflops=1, mfu=1, encode_mfu=1, cores=cores, source="", **sizes)


TABLE = MachineCatalog(
    machines={"cpu": make_machine(0), "gpu": make_machine(1)}, assumptions=Assumptions(network_share=1)
)
POOLS = {"cpu": ("cpu", 4), "gpu": ("gpu", 8)}


def make_work(cpu: float = 0, gpu: float = 0, network: float = 0, pool: Any = "cpu", nodes: int = 4) -> Workload:
    """A stage that keeps the cores, the GPU and the link of ``nodes`` machines busy for these hours."""
    each = nodes * HOUR
    sizes: dict[str, Any] = {"core_seconds": cpu * 10 * each, "flops": gpu * 1e12 * each, "bytes": network * 1e9 * each}
    return Workload(pool, 1.0, **sizes)


@pytest.fixture(scope="module")
def both() -> tuple[CostPlan, CostPlan]:
    """The smoke config over 10^9 URLs, without streaming and with it."""
    table = pick_machines("1xH100", "cpu-96")
    plain, streamed = (make_plan(load_config(SMOKE, words), table, MANY) for words in ([], [STREAM]))
    return plain, streamed


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        ((), [DATA, ("pack", "embed")]),  # CLIP is trained on the whole download, and scores after that
        (CAPTIONS, [DATA, ("caption", "pack", "embed")]),
    ],
)
def test_stages_stream_as_the_scheduler_starts_them(words: tuple[str, ...], groups: list[tuple[str, ...]]) -> None:
    found = group_stages(load_config(SMOKE, [*words, STREAM]), WORKLOADS)
    assert [group for group in found if len(group) > 1] == groups
    assert {len(group) for group in group_stages(load_config(SMOKE, words), WORKLOADS)} == {1}
    assert len({stage for group in found for stage in group}) == sum(len(group) for group in found)


def test_a_tuned_encoder_stands_between_pack_and_embed() -> None:
    config = load_config(str(ROOT / "configs" / "textual_inversion.yaml"), [STREAM])
    assert ("pack",) in group_stages(config, WORKLOADS) and ("embed",) in group_stages(config, WORKLOADS)


def test_stages_on_the_same_machines_share_each_resource() -> None:
    works = [make_work(cpu=3, network=5), make_work(cpu=4, network=1)]
    shared = estimate_shared_hours(works, TABLE.machines["cpu"], 4, TABLE.assumptions)
    assert (shared.hours, shared.bound) == (pytest.approx(7), "CPU")
    computing = [make_work(cpu=3, gpu=5), make_work(cpu=4)]  # without GPUs on the cores
    assert estimate_shared_hours(computing, TABLE.machines["cpu"], 4, TABLE.assumptions).hours == pytest.approx(9)
    assert estimate_shared_hours(computing, TABLE.machines["gpu"], 4, TABLE.assumptions).hours == pytest.approx(7)


@pytest.mark.parametrize(
    ("cpu", "network", "gpu", "hours"), [((3, 4), (1, 2), 2, 7), ((3, 4), (8, 5), 2, 13), ((3, 4), (1, 2), 20, 20)]
)
def test_a_stream_takes_as_long_as_its_slowest_resource(
    cpu: tuple[float, float], network: tuple[float, float], gpu: float, hours: float
) -> None:
    works = {str(index): make_work(*one) for index, one in enumerate(zip(cpu, (0, 0), network, strict=True))}
    works["model"] = make_work(gpu=gpu, pool="gpu", nodes=8)
    stream = plan_stream(works, POOLS, 10**9, TABLE)
    assert stream.hours == pytest.approx(hours)
    alone = [
        estimate_hours(work, TABLE.machines[work.pool], POOLS[work.pool][1], TABLE.assumptions)
        for work in works.values()
    ]
    assert max(one.hours for one in alone) <= stream.hours <= sum(one.hours for one in alone)
    assert stream.slowest.machine == ("gpu" if gpu > 13 else "cpu")


def test_of_the_others_only_as_many_machines_count_as_keep_pace() -> None:
    works = {"read": make_work(network=16), "score": make_work(gpu=3, pool="gpu", nodes=8)}
    machines = {one.machine: one for one in plan_stream(works, POOLS, 10**9, TABLE).machines}
    assert (machines["cpu"].nodes, machines["gpu"].nodes) == (4, 2)  # one would take 24 hours
    assert machines["gpu"].busy.hours == pytest.approx(12)


def test_few_shards_pass_the_stages_one_after_the_other() -> None:
    works = {"read": make_work(network=10), "measure": make_work(cpu=6)}
    assert plan_stream(works, POOLS, 40, TABLE).hours == pytest.approx(16)  # one shard for each of 40 cores
    assert plan_stream(works, POOLS, 3, TABLE).hours == pytest.approx(16)
    assert plan_stream(works, POOLS, 400, TABLE).hours == pytest.approx(10 + 6 / 10)


def test_a_plan_with_streams_is_shorter_and_says_which_stages_run_together(both: tuple[CostPlan, CostPlan]) -> None:
    plain, streamed = both
    assert [stream.stages for stream in streamed.streams] == [DATA, ("pack", "embed")] and not plain.streams
    alone = {cost.stage: cost.hours for cost in plain.costs}
    saved = sum(sum(alone[stage] for stage in stream.stages) - stream.hours for stream in streamed.streams)
    assert saved > 0 and plain.hours - streamed.hours == pytest.approx(saved)
    assert plain.hours == pytest.approx(sum(alone.values()))
    for stream in streamed.streams:
        paid = sum(cost.dollars for cost in streamed.costs if cost.stage in stream.stages)
        held = [(streamed.table.machines[one.machine].price, one.nodes) for one in stream.machines]
        assert paid == pytest.approx(stream.hours * sum(price * nodes for price, nodes in held))
    encoded = encode_plan(streamed)
    assert encoded["streams"] == [asdict(stream) for stream in streamed.streams]
    assert encoded["hours"] == streamed.hours


def test_the_table_shows_the_stages_that_run_together(both: tuple[CostPlan, CostPlan]) -> None:
    printed = []
    for plan in both:
        console = Console(width=240, file=StringIO())
        with console.capture() as captured:
            console.print(render_plan(plan, simulate_plan(plan)))
        printed.append(captured.get())
    assert "together" not in printed[0] and "alone" not in printed[0]
    rows = [line.strip() for line in printed[1].splitlines()]
    first = next(index for index, row in enumerate(rows) if row.startswith("= together"))
    assert rows[first].endswith("download, annotate at the same time (cluster.stream)")
    assert [row.split()[0] for row in rows[first - 2 : first]] == [*DATA]
    assert all(" alone " in row for row in rows[first - 2 : first])
    assert "those that stream run concurrently" in printed[1]


def test_the_simulation_agrees_with_the_plan(both: tuple[CostPlan, CostPlan]) -> None:
    for plan in both:
        hours = {cost.stage: cost.hours for cost in plan.costs}
        data, text = plan.streams or (None, None)
        clip = hours["encoder"] + hours["clip"] + hours["score"]  # these wait for the download
        images = data.hours + clip if data else hours["download"] + max(hours["annotate"], clip)
        pairs = text.hours if text else hours["pack"] + hours["embed"]
        rest = sum(taken for stage, taken in hours.items() if stage.startswith(("train.", "select", "sample")))
        simulated = simulate_plan(plan)
        assert simulated is not None
        assert simulated.quiet == pytest.approx(images + pairs + rest, rel=0.01)
        assert simulated.worst >= simulated.mean >= simulated.quiet * 0.999


def test_queues_wait_for_what_a_stream_waits_for_and_later_ones_for_all_of_it(both: tuple[CostPlan, CostPlan]) -> None:
    streamed = both[1]
    found = find_inputs(streamed, name_queues(streamed))
    data = "download + annotate"  # on the same machines
    assert found[data] == set() and found["encoder"] == {data}
    assert found["select"] == {data, "score"}
    assert (found["pack"], found["embed"]) == ({data, "select"}, {data, "select", "encoder"})
    assert found["train.base"] == {"pack", "embed"}
