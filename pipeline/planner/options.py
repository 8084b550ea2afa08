"""The machines of the table side by side: does it fit, how long does training take, what does it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.planner.table import Assumptions, Machine, Table
from pipeline.planner.training import Gang, StageModel, gang

MOST_NODES = 1024


@dataclass(frozen=True)
class Option:
    """The cascade trained on ``nodes`` machines of one kind, a stage after the other."""

    machine: str
    nodes: int
    gangs: tuple[Gang, ...]
    dollars: float
    spot_dollars: float | None

    @property
    def hours(self) -> float:
        """Of all stages."""
        return sum(one.hours for one in self.gangs)


def option(
    name: str,
    machine: Machine,
    nodes: int,
    models: Sequence[StageModel],
    sample_bytes: dict[str, float],
    assumptions: Assumptions,
) -> Option | None:
    """None where a stage does not fit, or its batch does not divide."""
    gangs = []
    for model in models:
        found = gang(model, machine, nodes, assumptions, sample_bytes[model.name])
        if found is None:
            return None
        gangs.append(found)
    hours = sum(one.hours for one in gangs) * nodes
    spot = None if machine.spot is None else hours * machine.spot
    return Option(name, nodes, tuple(gangs), hours * machine.price, spot)


@dataclass(frozen=True)
class Choice:
    """What one kind of machine offers: the fewest that it fits on, and the fewest that are in time; None: none."""

    machine: str
    fewest: Option | None
    in_time: Option | None


def choices(table: Table, models: Sequence[StageModel], sample_bytes: dict[str, float], days: float) -> list[Choice]:
    """Every machine of the table, at 1, 2, 4, ... of it."""
    found = []
    for name, machine in table.machines.items():
        fewest = in_time = None
        nodes = 1
        while nodes <= MOST_NODES and in_time is None:
            one = option(name, machine, nodes, models, sample_bytes, table.assumptions)
            fewest = fewest or one
            if one is not None and one.hours <= days * 24:
                in_time = one
            nodes *= 2
        found.append(Choice(name, fewest, in_time))
    return found


def cheapest(found: Sequence[Choice]) -> Option | None:
    """The least dollars among those in time, else among all that fit."""
    timely = [choice.in_time for choice in found if choice.in_time]
    return min(timely or [c.fewest for c in found if c.fewest], key=lambda one: one.dollars, default=None)


def fastest_box(found: Sequence[Choice]) -> Option | None:
    """The single machine that is done first."""
    boxes = [choice.fewest for choice in found if choice.fewest and choice.fewest.nodes == 1]
    return min(boxes, key=lambda one: one.hours, default=None)


def cheapest_box(found: Sequence[Choice]) -> Option | None:
    """The single machine that costs least, however long it takes."""
    boxes = [choice.fewest for choice in found if choice.fewest and choice.fewest.nodes == 1]
    return min(boxes, key=lambda one: one.dollars, default=None)
