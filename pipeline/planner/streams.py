"""Stages that stream (`cluster.stream`): which of them run at the same time, and how long they take together.

A stage that reads another shard by shard starts with its first shards and keeps pace with it, since either waits for
the other (`cluster.stream_lag`). So cores, GPUs and links work for all of these stages at once, and the resource that
is busy longest decides; only the first shards pass through the stages one after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from pipeline.config import RunConfig
from pipeline.planner.catalog import Assumptions, Machine, MachineCatalog
from pipeline.planner.workload import StageHours, Workload, estimate_hours, find_slowest, list_hours
from pipeline.stages.graph import list_stages


@dataclass(frozen=True)
class StreamMachines:
    """Machines of one kind, and the stages of a stream that share them; ``busy``: the slowest resource."""

    machine: str
    nodes: int
    stages: tuple[str, ...]
    busy: StageHours


@dataclass(frozen=True)
class StreamedStages:
    """Stages that run at the same time."""

    stages: tuple[str, ...]
    machines: tuple[StreamMachines, ...]
    hours: float

    @property
    def slowest(self) -> StreamMachines:
        """The machines that the others wait for."""
        return max(self.machines, key=lambda one: one.busy.hours)

    def machines_of(self, stage: str) -> StreamMachines:
        """Returns the machines on which a stage of the stream runs."""
        return next(one for one in self.machines if stage in one.stages)


def group_stages(config: RunConfig, planned: Collection[str]) -> list[tuple[str, ...]]:
    """Returns the planned stages in the pipeline's order, those that run at the same time in one group.

    The rule is that of `pipeline.execution.scheduler`: a stage starts while inputs run that it streams from, once all
    its other inputs are finished. One of these that needs the running stage itself leaves nothing to overlap.
    """
    groups: dict[str, list[str]] = {}
    group_of: dict[str, list[str]] = {}
    behind: dict[str, set[str]] = {}
    for stage in list_stages(config):
        behind[stage.name] = {name for given in stage.inputs for name in (given, *behind[given])}
        if stage.name not in planned:
            continue
        running = [name for name in stage.inputs if name in stage.type.streams and name in group_of]
        group = group_of[running[0]] if running and config.cluster.stream else []
        others = {name for given in stage.inputs if given not in running for name in (given, *behind[given])}
        if others.intersection(group):
            group = []
        group.append(stage.name)
        group_of[stage.name] = group
        groups[group[0]] = group
    return [tuple(group) for group in groups.values()]


def estimate_shared_hours(
    works: Collection[Workload], machine: Machine, nodes: int, assumptions: Assumptions
) -> StageHours:
    """Returns the hours of stages that share ``nodes`` machines: each resource is busy with one after the other."""
    busy: dict[str, float] = {}
    for work in works:
        hours = list_hours(work, machine, nodes, assumptions)
        hours["CPU"] = max(hours["CPU"], hours.pop("arithmetic", 0.0))  # without GPUs cores compute too
        for resource, more in hours.items():
            busy[resource] = busy.get(resource, 0.0) + more
    return find_slowest(busy)


def plan_stream(
    works: Mapping[str, Workload], pools: Mapping[str, tuple[str, int]], shards: int, table: MachineCatalog
) -> StreamedStages:
    """Returns the stages of ``works`` running at the same time; ``pools``: machine and most machines, by pool.

    Of each kind of machine only as many count as keep pace: a pool starts workers for shards that wait. With fewer
    shards than workers all are in the same stage at once, and streaming saves nothing.
    """
    kinds: dict[str, list[str]] = {}
    most: dict[str, int] = {}
    for stage, work in works.items():
        name, nodes = pools[work.pool]
        kinds.setdefault(name, []).append(stage)
        most[name] = max(most.get(name, 0), nodes)
    found: list[StreamMachines] = []
    alone, workers = 0.0, 1
    for name, stages in kinds.items():
        machine, nodes, own = table.machines[name], most[name], [works[stage] for stage in stages]
        busy = estimate_shared_hours(own, machine, nodes, table.assumptions)
        found.append(StreamMachines(name, nodes, tuple(stages), busy))
        alone += sum(estimate_hours(work, machine, nodes, table.assumptions).hours for work in own)
        on_cores = any(work.pool == "cpu" for work in own)
        workers = max(workers, nodes * (machine.cores if on_cores else machine.units))
    pace = max(one.busy.hours for one in found)
    hours = pace + (alone - pace) * min(1.0, workers / shards)
    return StreamedStages(tuple(works), tuple(_find_fewest(one, works, hours, table) for one in found), hours)


def _find_fewest(
    most: StreamMachines, works: Mapping[str, Workload], hours: float, table: MachineCatalog
) -> StreamMachines:
    """Returns the fewest machines that do their stages' work in ``hours``."""
    own, machine = [works[stage] for stage in most.stages], table.machines[most.machine]
    for nodes in range(1, most.nodes):
        busy = estimate_shared_hours(own, machine, nodes, table.assumptions)
        if busy.hours <= hours:
            return replace(most, nodes=nodes, busy=busy)
    return most
