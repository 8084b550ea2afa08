"""Simulates a plan's stages on machines that fail: how much longer the run takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean

from pipeline.planner.catalog import Machine
from pipeline.planner.plan import CostPlan, StageCost
from pipeline.planner.simulate import (
    FailureRates,
    NeverEndsError,
    SimulationResult,
    Training,
    WorkQueue,
    find_best_interval,
    simulate_stages,
)
from pipeline.planner.storage import count_checkpoint_bytes
from pipeline.planner.streams import StreamedStages, StreamMachines
from pipeline.stages.graph import list_stages
from pipeline.units import HOUR

SEEDS = 8


@dataclass(frozen=True)
class FailureEstimate:
    """Hours until the last stage ends: without failures, and mean and worst of `SEEDS` simulations."""

    nodes: int
    quiet: float
    mean: float
    worst: float
    failures: float
    rate: float  # failures per machine and hour
    checkpoints: dict[str, tuple[int, int]]  # steps between checkpoints: configured, Young's optimum
    problem: str = ""


def simulate_plan(plan: CostPlan, seed: int = 0) -> FailureEstimate | None:
    """Simulates every planned stage on its machines; None if nothing fits. Reproducible by ``seed``."""
    if plan.chosen is None:
        return None
    assumptions, wanted = plan.assumptions, plan.wanted
    rate = assumptions.spot_failures_per_node_hour if wanted.spot else assumptions.failures_per_node_hour
    rates = FailureRates(rate / HOUR, assumptions.repair_minutes * 60, assumptions.restart_minutes * 60)
    names = name_queues(plan)
    graph = {names[cost.stage]: _model_stage(plan, cost) for cost in plan.costs}
    for stream in plan.streams:
        graph |= {names[one.stages[0]]: _model_stream(plan, stream, one) for one in stream.machines}
    inputs = find_inputs(plan, names)
    nodes = max(cost.nodes for cost in plan.costs)
    intervals = {group.stage: _compare_intervals(plan, group.stage, group.step, rate) for group in plan.chosen.groups}
    quiet = _simulate_once(graph, inputs, replace(rates, rate=0.0), seed)
    found = FailureEstimate(nodes, _find_end(quiet) / HOUR, 0, 0, 0, rate, intervals)
    try:
        runs = [_simulate_once(graph, inputs, rates, seed + index) for index in range(SEEDS)]
    except NeverEndsError as error:
        return replace(found, problem=str(error), mean=float("inf"), worst=float("inf"))
    ends = [_find_end(run) / HOUR for run in runs]
    failures = mean(sum(outcome.failures for outcome in run.values()) for run in runs)
    return replace(found, mean=mean(ends), worst=max(ends), failures=failures)


def _model_stage(plan: CostPlan, cost: StageCost) -> WorkQueue | Training:
    seconds = cost.hours * HOUR
    _, _, name = cost.stage.partition("train.")
    if name in plan.config.train:
        step = next(group.step for group in plan.chosen.groups if group.stage == name) if plan.chosen else 0.0
        every = plan.config.train[name].checkpoint_every * step
        return Training(seconds, cost.nodes, min(every, seconds), _estimate_save(plan, name, cost.nodes))
    if cost.stage in ("encoder", "clip", "text_tuning"):
        return WorkQueue(1, seconds, 1)
    shards = min(plan.shards, plan.works[cost.stage].tasks or plan.shards)
    if cost.stage == "sample":
        shards = max(1, round(cost.items / plan.config.sample.prompts_per_shard))
    return _make_queue(shards, seconds, plan.table.machines[cost.machine], cost.nodes, cost.bound)


def _model_stream(plan: CostPlan, stream: StreamedStages, own: StreamMachines) -> WorkQueue:
    """Returns the stages of a stream that share machines as one queue; the slowest ends with the stream."""
    seconds = own.busy.hours * HOUR * stream.hours / stream.slowest.busy.hours
    return _make_queue(plan.shards, seconds, plan.table.machines[own.machine], own.nodes, own.busy.bound)


def _make_queue(shards: int, seconds: float, machine: Machine, nodes: int, bound: str) -> WorkQueue:
    slots = machine.units if bound in ("GPU", "arithmetic") else machine.cores
    slots = min(slots, max(1, shards // nodes))  # few large shards cannot use all cores
    return WorkQueue(shards, seconds * nodes * slots / shards, nodes, slots)


def _estimate_save(plan: CostPlan, stage: str, nodes: int) -> float:
    """Returns the seconds that training waits for a checkpoint."""
    config = plan.config.networks()[stage]
    if config.overlap_save:
        return 0.0
    model = next(model for model in plan.models if model.name == stage)
    return model.parameters * count_checkpoint_bytes(config) / (plan.assumptions.checkpoint_gb_s * 1e9 * nodes)


def _compare_intervals(plan: CostPlan, stage: str, step: float, rate: float) -> tuple[int, int]:
    """Returns the steps between checkpoints: the config's, and the optimum if training waits for each."""
    assert plan.chosen is not None
    config = plan.config.networks()[stage].model_copy(update={"overlap_save": False})
    model = next(model for model in plan.models if model.name == stage)
    save = model.parameters * count_checkpoint_bytes(config) / (plan.assumptions.checkpoint_gb_s * 1e9)
    best = find_best_interval(rate / HOUR * plan.chosen.nodes, save)
    updates = config.steps if best == float("inf") else min(config.steps, max(1, round(best / step)))
    return config.checkpoint_every, updates


def name_queues(plan: CostPlan) -> dict[str, str]:
    """Returns the simulated queue of each planned stage: its own, or that of the machines it shares in a stream."""
    names = {cost.stage: cost.stage for cost in plan.costs}
    shared = [one.stages for stream in plan.streams for one in stream.machines]
    return names | {stage: " + ".join(stages) for stages in shared for stage in stages}


def find_inputs(plan: CostPlan, names: dict[str, str]) -> dict[str, set[str]]:
    """Returns what each queue waits for: its planned inputs, and the stage that has its machines before it.

    A stage in a stream waits for what the others wait for, and later stages wait for the whole stream.
    """
    stream_of = {stage: stream.stages for stream in plan.streams for stage in stream.stages}
    found: dict[str, set[str]] = {name: set() for name in names.values()}
    before: dict[str, set[str]] = {}
    for stage in list_stages(plan.config):
        before[stage.name] = set()
        for given in stage.inputs:
            beside = stream_of.get(given, (given,))
            skipped = given not in names or (stage.name in beside)
            before[stage.name] |= before[given] if skipped else {names[one] for one in beside}
        if stage.name in names:
            found[names[stage.name]] |= before[stage.name]
    on_gpu = [cost.stage for cost in plan.costs if cost.stage.startswith("train.")]
    for first, then in pairwise(on_gpu):
        found[then].add(first)  # the cascade's stages train one after the other
    return found


def _simulate_once(
    graph: dict[str, WorkQueue | Training], inputs: dict[str, set[str]], faults: FailureRates, seed: int
) -> dict[str, SimulationResult]:
    return simulate_stages(graph, inputs, dict.fromkeys(graph, faults), seed)


def _find_end(run: dict[str, SimulationResult]) -> float:
    return max(outcome.end for outcome in run.values())
