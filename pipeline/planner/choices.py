"""The machines of the table compared: whether training fits, how long it takes, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.planner.catalog import Assumptions, Machine, MachineCatalog
from pipeline.planner.training import StageModel, TrainingGroup, plan_group

MOST_NODES = 1024


@dataclass(frozen=True)
class MachineOption:
    """The cascade trained on ``nodes`` machines of one kind, stage after stage."""

    machine: str
    nodes: int
    groups: tuple[TrainingGroup, ...]
    dollars: float
    spot_dollars: float | None

    @property
    def hours(self) -> float:
        """Hours of all stages."""
        return sum(one.hours for one in self.groups)


def plan_option(
    name: str,
    machine: Machine,
    nodes: int,
    models: Sequence[StageModel],
    sample_bytes: dict[str, float],
    assumptions: Assumptions,
) -> MachineOption | None:
    """Returns the cascade on ``nodes`` machines; None if a stage does not fit or its batch does not divide."""
    groups = []
    for model in models:
        found = plan_group(model, machine, nodes, assumptions, sample_bytes[model.name])
        if found is None:
            return None
        groups.append(found)
    hours = sum(one.hours for one in groups) * nodes
    spot = None if machine.spot is None else hours * machine.spot
    return MachineOption(name, nodes, tuple(groups), hours * machine.price, spot)


@dataclass(frozen=True)
class Choice:
    """One kind of machine: the fewest that training fits on and the fewest that are in time, or None."""

    machine: str
    fewest: MachineOption | None
    in_time: MachineOption | None


def list_choices(
    table: MachineCatalog, models: Sequence[StageModel], sample_bytes: dict[str, float], days: float
) -> list[Choice]:
    """Returns every machine of the table, tried in numbers 1, 2, 4, ..."""
    found = []
    for name, machine in table.machines.items():
        fewest = in_time = None
        nodes = 1
        while nodes <= MOST_NODES and in_time is None:
            one = plan_option(name, machine, nodes, models, sample_bytes, table.assumptions)
            fewest = fewest or one
            if one is not None and one.hours <= days * 24:
                in_time = one
            nodes *= 2
        found.append(Choice(name, fewest, in_time))
    return found


def find_cheapest(found: Sequence[Choice]) -> MachineOption | None:
    """Returns the least dollars among those in time, else among all that fit."""
    timely = [choice.in_time for choice in found if choice.in_time]
    return min(timely or [c.fewest for c in found if c.fewest], key=lambda one: one.dollars, default=None)


def find_fastest_machine(found: Sequence[Choice]) -> MachineOption | None:
    """Returns the single machine that trains fastest."""
    boxes = [choice.fewest for choice in found if choice.fewest and choice.fewest.nodes == 1]
    return min(boxes, key=lambda one: one.hours, default=None)


def find_cheapest_machine(found: Sequence[Choice]) -> MachineOption | None:
    """Returns the single machine that costs least, however long it takes."""
    boxes = [choice.fewest for choice in found if choice.fewest and choice.fewest.nodes == 1]
    return min(boxes, key=lambda one: one.dollars, default=None)
