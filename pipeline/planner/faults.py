"""A plan's stages put through the simulation: how much longer it takes where machines fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean

from pipeline.planner.plan import Plan, StageCost
from pipeline.planner.simulate import Bag, Faults, NeverEndsError, Outcome, Training, best_interval, simulate
from pipeline.planner.units import HOUR
from pipeline.planner.volume import checkpoint_bytes
from pipeline.stages import stages

SEEDS = 8


@dataclass(frozen=True)
class Simulated:
    """Hours until the last stage ends: with no failure, and in the mean and at worst of `SEEDS` simulations."""

    nodes: int
    quiet: float
    mean: float
    worst: float
    failures: float
    rate: float  # failures of a machine an hour
    checkpoints: dict[str, tuple[int, int]]  # updates between checkpoints: as configured, as Young has it
    problem: str = ""


def simulate_plan(plan: Plan, seed: int = 0) -> Simulated | None:
    """Every planned stage on its machines. None where nothing fits. The same seed gives the same figures."""
    if plan.chosen is None:
        return None
    assumptions, wanted = plan.assumptions, plan.wanted
    rate = assumptions.spot_failures_per_node_hour if wanted.spot else assumptions.failures_per_node_hour
    faults = Faults(rate / HOUR, assumptions.repair_minutes * 60, assumptions.restart_minutes * 60)
    graph = {cost.stage: _stage(plan, cost) for cost in plan.costs}
    inputs = _inputs(plan, list(graph))
    nodes = max(cost.nodes for cost in plan.costs)
    intervals = {gang.stage: _intervals(plan, gang.stage, gang.step, rate) for gang in plan.chosen.gangs}
    quiet = _run(graph, inputs, replace(faults, rate=0.0), seed)
    found = Simulated(nodes, _end(quiet) / HOUR, 0, 0, 0, rate, intervals)
    try:
        runs = [_run(graph, inputs, faults, seed + index) for index in range(SEEDS)]
    except NeverEndsError as error:
        return replace(found, problem=str(error), mean=float("inf"), worst=float("inf"))
    ends = [_end(run) / HOUR for run in runs]
    failures = mean(sum(outcome.failures for outcome in run.values()) for run in runs)
    return replace(found, mean=mean(ends), worst=max(ends), failures=failures)


def _stage(plan: Plan, cost: StageCost) -> Bag | Training:
    seconds = cost.hours * HOUR
    _, _, name = cost.stage.partition("train.")
    if name in plan.config.train:
        step = next(gang.step for gang in plan.chosen.gangs if gang.stage == name) if plan.chosen else 0.0
        every = plan.config.train[name].checkpoint_every * step
        return Training(seconds, cost.nodes, min(every, seconds), _save(plan, name, cost.nodes))
    machine = plan.table.machines[cost.machine]
    slots = machine.units if cost.bound in ("GPU", "arithmetic") else machine.cores
    shards = max(1, round(plan.rates.urls / plan.config.listing.rows_per_shard))
    work = next(work for work in plan.works if work.stage == cost.stage)
    if work.pool == "driver" or cost.stage in ("encoder", "clip"):
        return Bag(1, seconds, 1)
    if cost.stage == "sample":
        shards = max(1, round(cost.items / plan.config.sample.prompts_per_shard))
    slots = min(slots, max(1, shards // cost.nodes))  # a few large shards are not spread over all cores
    return Bag(shards, seconds * cost.nodes * slots / shards, cost.nodes, slots)


def _save(plan: Plan, stage: str, nodes: int) -> float:
    """Seconds that training waits for a checkpoint."""
    config = plan.config.train[stage]
    if config.overlap_save:
        return 0.0
    model = next(model for model in plan.models if model.name == stage)
    return model.parameters * checkpoint_bytes(config) / (plan.assumptions.checkpoint_gb_s * 1e9 * nodes)


def _intervals(plan: Plan, stage: str, step: float, rate: float) -> tuple[int, int]:
    """Updates between checkpoints: the config's, and the number that loses least were training to wait for each."""
    assert plan.chosen is not None
    config = plan.config.train[stage].model_copy(update={"overlap_save": False})
    model = next(model for model in plan.models if model.name == stage)
    save = model.parameters * checkpoint_bytes(config) / (plan.assumptions.checkpoint_gb_s * 1e9)
    best = best_interval(rate / HOUR * plan.chosen.nodes, save)
    updates = config.steps if best == float("inf") else min(config.steps, max(1, round(best / step)))
    return config.checkpoint_every, updates


def _inputs(plan: Plan, planned: list[str]) -> dict[str, list[str]]:
    """What each planned stage waits for: the planned among the stages before it, and whoever has its machines first."""
    found: dict[str, list[str]] = {}
    reach: dict[str, set[str]] = {}
    for stage in stages(plan.config):
        before = {name for given in stage.inputs for name in ({given} if given in planned else reach[given])}
        reach[stage.name] = before
        if stage.name in planned:
            found[stage.name] = sorted(before)
    on_gpu = [cost.stage for cost in plan.costs if cost.stage.startswith("train.")]
    for first, then in pairwise(on_gpu):
        found[then].append(first)  # the cascade's stages take turns on the machines
    return found


def _run(
    graph: dict[str, Bag | Training], inputs: dict[str, list[str]], faults: Faults, seed: int
) -> dict[str, Outcome]:
    return simulate(graph, inputs, dict.fromkeys(graph, faults), seed)


def _end(run: dict[str, Outcome]) -> float:
    return max(outcome.end for outcome in run.values())
