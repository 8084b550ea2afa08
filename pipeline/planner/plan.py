"""A plan: everything that `imagen-ray plan` prints, from a config and a table. Starts neither Ray nor a machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from dataprep.schema import UserError
from pipeline.config import RunConfig
from pipeline.planner.encoders import ClipCost, TextCost, clip_cost, text_cost
from pipeline.planner.memory import Memory, Setting, rank_memory
from pipeline.planner.options import MOST_NODES, Choice, Option, cheapest, choices, option
from pipeline.planner.rates import Rates, assumed_rates, measure_rates
from pipeline.planner.table import Assumptions, Machine, Table, machine_named
from pipeline.planner.training import StageModel
from pipeline.planner.volume import Volume, stored, volumes
from pipeline.planner.work import Work, data_work, sample_work, work_hours
from train.tasks.diffusion import stage_columns

DATA_SHARE = 0.25  # of the days: what data stages may take before more machines are taken for them
SETTINGS = [(zero, "none") for zero in range(4)] + [(2, "optimizer"), (3, "optimizer"), (3, "all")]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a plan beside config and table."""

    machine: str | None = None
    nodes: int | None = None
    data_machine: str | None = None
    data_nodes: int | None = None
    days: float = 30.0
    spot: bool = False
    measured: str | None = None
    urls: int | None = None


@dataclass(frozen=True)
class StageCost:
    """One stage on the machines that were chosen for it."""

    stage: str
    machine: str
    nodes: int
    items: float
    hours: float
    bound: str
    dollars: float
    setting: str


@dataclass(frozen=True)
class Plan:
    """All figures."""

    config: RunConfig
    table: Table
    wanted: Wanted
    models: list[StageModel]
    text: TextCost
    clip: ClipCost
    rates: Rates
    volumes: list[Volume]
    choices: list[Choice]
    chosen: Option | None
    works: list[Work]
    costs: list[StageCost]

    @property
    def assumptions(self) -> Assumptions:
        """Those of the table."""
        return self.table.assumptions

    @property
    def flops(self) -> float:
        """Operations of all training, nothing recomputed."""
        return sum(model.update_flops * model.config.steps for model in self.models)

    def memories(self, model: StageModel) -> list[tuple[Setting, int, Memory]]:
        """Settings, micro batch and memory of a rank at the config's own ranks and accumulation."""
        own, ranks = model.own_setting(), self.config.cluster.ranks
        micro = model.config.batch_size // (ranks * model.config.accumulation)
        found = []
        for zero, offload in SETTINGS:
            optimizer = own.optimizer if zero == 0 else "adamw"
            setting = Setting(optimizer, zero, offload, own.recompute, own.precision)  # type: ignore[arg-type]
            memory = rank_memory(model.parameters, setting, ranks, model.activations(setting), micro)
            found.append((setting, micro, memory))
        return found


def make_plan(config: RunConfig, table: Table, wanted: Wanted) -> Plan:
    """The whole plan. UserError for a machine that is not in the table or not enough for what is asked."""
    assumptions = table.assumptions
    text, clip = text_cost(config.encoder), clip_cost(config.clip)
    rates = assumed_rates(config, assumptions, wanted.urls)
    if wanted.measured:
        rates = measure_rates(rates, wanted.measured)
    group = config.pack.row_group_rows
    models = [StageModel(name, stage, text.width, rates.padded, group) for name, stage in config.train.items()]
    embedding = rates.embedding_bytes(text.width, config.embed.codec, config.embed.compression == "zstd")
    sample_bytes = {model.name: _sample_bytes(model, rates, embedding) for model in models}
    if wanted.machine:  # only this one is looked at
        table = Table(assumptions=assumptions, machines=_with_data(table, wanted))
    found = choices(table, models, sample_bytes, wanted.days)
    chosen = _choose(found, table, models, sample_bytes, wanted)
    works = data_work(config, rates, text, clip, embedding, assumptions)
    works.append(sample_work(config, {model.name: float(model.whole) for model in models}))
    stages = volumes(config, rates, text.width, clip.width, {model.name: model.parameters for model in models})
    plan = Plan(config, table, wanted, models, text, clip, rates, stages, found, chosen, works, [])
    return replace(plan, costs=_costs(plan)) if chosen else plan


def _with_data(table: Table, wanted: Wanted) -> dict[str, Machine]:
    machine = machine_named(table, str(wanted.machine))
    others = {name: one for name, one in table.machines.items() if one.gpus == 0 or name == wanted.data_machine}
    return {str(wanted.machine): machine} | others


def _sample_bytes(model: StageModel, rates: Rates, embedding: float) -> float:
    """Bytes that a training sample reads: its pixel columns and its caption's embedding."""
    sizes = (int(column.rpartition("_")[2]) for column in stage_columns(model.config))
    return sum(rates.pixel_bytes[size] for size in sizes) + embedding


def _choose(
    found: list[Choice], table: Table, models: list[StageModel], sample_bytes: dict[str, float], wanted: Wanted
) -> Option | None:
    """The machine and number that were asked for, else the cheapest in time with GPUs, where any has them."""
    if wanted.nodes is not None:
        name = wanted.machine or getattr(_best(found, table), "machine", None)
        if name is None:
            return None
        one = option(name, machine_named(table, name), wanted.nodes, models, sample_bytes, table.assumptions)
        if one is None:
            ranks = machine_named(table, name).units * wanted.nodes
            raise UserError(
                f"--nodes {wanted.nodes}: the cascade does not fit on {ranks} ranks of {name}, or a batch_size is not "
                "a multiple of them; take another number"
            )
        return one
    if wanted.machine is not None:
        choice = next(choice for choice in found if choice.machine == wanted.machine)
        return choice.in_time or choice.fewest
    return _best(found, table)


def _best(found: list[Choice], table: Table) -> Option | None:
    with_gpus = [choice for choice in found if table.machines[choice.machine].gpus]
    return cheapest(with_gpus) or cheapest(found)


def _costs(plan: Plan) -> list[StageCost]:
    """Every stage on its machines, in the pipeline's order."""
    assert plan.chosen is not None
    table, chosen, wanted = plan.table, plan.chosen, plan.wanted
    data = wanted.data_machine or _data_machine(table, chosen.machine)
    data_machine = machine_named(table, data)
    nodes = wanted.data_nodes or _data_nodes(plan, data_machine)
    costs = []
    for work in plan.works:
        name, count = (chosen.machine, chosen.nodes) if work.pool == "gpu" else (data, nodes)
        machine, used = table.machines[name], 1 if work.pool == "driver" else count
        hours = work_hours(work, machine, used, plan.assumptions)
        dollars = hours.hours * used * price(machine, wanted.spot)
        costs.append(StageCost(work.stage, name, used, work.items, hours.hours, hours.bound, dollars, ""))
    machine = table.machines[chosen.machine]
    trained = []
    for gang in chosen.gangs:
        dollars = gang.hours * chosen.nodes * price(machine, wanted.spot)
        setting = f"{gang.fit.setting}, {gang.fit.micro_batch} a rank, {gang.fit.needed / 1e9:.0f} GB"
        samples = float(plan.config.train[gang.stage].steps * plan.config.train[gang.stage].batch_size)
        name = f"train.{gang.stage}"
        trained.append(StageCost(name, chosen.machine, chosen.nodes, samples, gang.hours, gang.bound, dollars, setting))
    return [*costs[:-1], *trained, costs[-1]]


def price(machine: Machine, spot: bool) -> float:
    """Dollars an hour; on demand where there is no spot price."""
    return machine.spot if spot and machine.spot is not None else machine.price


def _data_machine(table: Table, training: str) -> str:
    """The cheapest core an hour among the machines without GPUs; where there is none, the one that trains."""
    without = {name: one.price / one.cores for name, one in table.machines.items() if not one.gpus}
    return min(without, key=lambda name: without[name]) if without else training


def _data_nodes(plan: Plan, machine: Machine) -> int:
    """The fewest, 1, 2, 4, ..., on which the CPU's stages take their share of the days."""
    nodes = 1
    while nodes < MOST_NODES and DATA_SHARE * plan.wanted.days * 24 < sum(
        work_hours(work, machine, nodes, plan.assumptions).hours for work in plan.works if work.pool == "cpu"
    ):
        nodes *= 2
    return nodes


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan for machines: plain values, bytes, seconds, hours and dollars."""
    models = [
        {
            "stage": f"train.{model.name}",
            "model": model.config.model,
            "parameters": model.parameters,
            "side": model.side,
            "forward_flops_a_sample": model.forward,
            "update_flops": model.update_flops,
            "samples": model.samples,
            "memory": [
                asdict(setting) | {"micro_batch": micro} | asdict(memory) | {"device": memory.device}
                for setting, micro, memory in plan.memories(model)
            ],
        }
        for model in plan.models
    ]
    return {
        "run": plan.config.run,
        "asked": asdict(plan.wanted),
        "training_flops": plan.flops,
        "models": models,
        "encoder": asdict(plan.text),
        "clip": asdict(plan.clip),
        "rates": asdict(plan.rates),
        "storage": [asdict(volume) for volume in plan.volumes],
        "stored_bytes": stored(plan.volumes),
        "stages": [asdict(cost) for cost in plan.costs],
        "options": [
            _option_json(choice, one) for choice in plan.choices for one in (choice.fewest, choice.in_time) if one
        ],
        "does_not_fit": [choice.machine for choice in plan.choices if choice.fewest is None],
        "machines": {name: machine.model_dump() for name, machine in plan.table.machines.items()},
        "assumptions": plan.assumptions.model_dump(),
    }


def _option_json(choice: Choice, one: Option) -> dict[str, Any]:
    gangs = [
        {
            "stage": gang.stage,
            "setting": str(gang.fit.setting),
            "micro_batch": gang.fit.micro_batch,
            "device_bytes": gang.fit.needed,
            "step_seconds": gang.step,
            "bound": gang.bound,
            "loader_gbit": gang.loader_gbit,
        }
        for gang in one.gangs
    ]
    own = {"machine": one.machine, "nodes": one.nodes, "hours": one.hours, "dollars": one.dollars}
    return own | {"spot_dollars": one.spot_dollars, "in_time": one is choice.in_time, "stages": gangs}
