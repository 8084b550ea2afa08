"""The plan of a config: everything that `imagen-ray plan` prints. Starts neither Ray nor a machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from dataprep.io.errors import UserError
from pipeline.config import RunConfig
from pipeline.planner.catalog import Assumptions, Machine, MachineCatalog, find_machine
from pipeline.planner.choices import MOST_NODES, Choice, MachineOption, find_cheapest, list_choices, plan_option
from pipeline.planner.encoders import (
    CaptionerCost,
    ClipCost,
    TextCost,
    estimate_captioner_cost,
    estimate_clip_cost,
    estimate_text_cost,
)
from pipeline.planner.host import estimate_host_ms
from pipeline.planner.memory import Memory, MemorySetting, estimate_memory
from pipeline.planner.rates import Rates, assume_rates, measure_rates
from pipeline.planner.storage import FEATURE_BYTES, StorageVolume, plan_volumes, sum_bytes
from pipeline.planner.training import StageModel
from pipeline.planner.workload import PlanFacts, Workload, estimate_hours, plan_workloads
from train.tasks.vq_config import VqTrainingConfig

DATA_SHARE = 0.25  # of the days, for data stages before they get more machines
SETTINGS = [(zero, "none") for zero in range(4)] + [(2, "optimizer"), (3, "optimizer"), (3, "all")]


@dataclass(frozen=True)
class PlanRequest:
    """Options of a plan besides config and catalog."""

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
    """A stage on the machines chosen for it."""

    stage: str
    machine: str
    nodes: int
    items: float
    hours: float
    bound: str
    dollars: float
    setting: str


@dataclass(frozen=True)
class CostPlan:
    """All figures of a plan."""

    config: RunConfig
    table: MachineCatalog
    wanted: PlanRequest
    models: list[StageModel]
    text: TextCost
    clip: ClipCost
    captioner: CaptionerCost | None
    rates: Rates
    volumes: list[StorageVolume]
    choices: list[Choice]
    chosen: MachineOption | None
    works: dict[str, Workload]
    costs: list[StageCost]

    @property
    def assumptions(self) -> Assumptions:
        """The catalog's assumptions."""
        return self.table.assumptions

    @property
    def flops(self) -> float:
        """FLOPs of all training without recomputation."""
        return sum(model.update_flops * model.config.steps for model in self.models)

    def ranks_of(self, model: StageModel) -> int:
        """Returns the ranks of a training as the config has them, else one."""
        return self.config.cluster.stage_ranks(f"train.{model.name}") or 1

    def memories(self, model: StageModel) -> list[tuple[MemorySetting, int, Memory]]:
        """Returns setting, micro batch and memory per rank at the config's ranks and accumulation."""
        own, ranks = model.own_setting(), self.ranks_of(model)
        micro = model.config.batch_size // (ranks * model.config.accumulation)
        found = []
        for zero, offload in SETTINGS:
            optimizer = own.optimizer if zero == 0 else "adamw"
            setting = MemorySetting(optimizer, zero, offload, own.recompute, own.precision)  # type: ignore[arg-type]
            summed = model.config.accumulation > 1
            memory = estimate_memory(model.parameters, setting, ranks, model.activations(setting), micro, summed)
            found.append((setting, micro, memory))
        return found


def make_plan(config: RunConfig, table: MachineCatalog, wanted: PlanRequest) -> CostPlan:
    """Returns the plan; raises UserError for a machine that is unknown or not enough."""
    assumptions = table.assumptions
    text = estimate_text_cost(config.encoder)
    clip = estimate_clip_cost(config.clip, text)
    captioner = estimate_captioner_cost(config.caption)
    rates = assume_rates(config, assumptions, wanted.urls)
    if wanted.measured:
        rates = measure_rates(rates, wanted.measured)
    group = config.pack.row_group_rows
    embedding = rates.embedding_bytes(text.width, config.embed.codec, config.embed.compression == "zstd")
    models = [
        StageModel(
            *(name, stage, text.width, rates.padded, group),
            host_ms=estimate_host_ms(stage, config.pack, embedding, assumptions),
            image_dim=clip.width,
        )
        for name, stage in config.networks().items()
    ]
    sample_bytes = {model.name: _sample_bytes(model, rates, embedding) for model in models}
    if wanted.machine:  # only this one is compared
        table = MachineCatalog(assumptions=assumptions, machines=_with_data(table, wanted))
    found = list_choices(table, models, sample_bytes, wanted.days)
    chosen = _choose(found, table, models, sample_bytes, wanted)
    parameters = {model.name: model.parameters for model in models}
    exported = {model.name: model.all_parameters for model in models}
    sampling_flops = {model.name: float(model.whole) for model in models}
    facts = PlanFacts(
        config, assumptions, rates, text, clip, embedding, parameters, exported, sampling_flops, captioner
    )
    works, volumes = plan_workloads(facts), plan_volumes(facts)
    plan = CostPlan(config, table, wanted, models, text, clip, captioner, rates, volumes, found, chosen, works, [])
    return replace(plan, costs=_costs(plan)) if chosen else plan


def _with_data(table: MachineCatalog, wanted: PlanRequest) -> dict[str, Machine]:
    machine = find_machine(table, str(wanted.machine))
    others = {name: one for name, one in table.machines.items() if one.gpus == 0 or name == wanted.data_machine}
    return {str(wanted.machine): machine} | others


def _sample_bytes(model: StageModel, rates: Rates, embedding: float) -> float:
    """Returns the bytes read per training sample: its pixel and vector columns, and its caption's embedding."""
    columns = () if isinstance(model.config, VqTrainingConfig) else model.config.vector_columns()
    vectors = len(columns) * FEATURE_BYTES * (model.image_dim or 0)
    return sum(rates.pixel_bytes[size] for size in model.config.stored_sizes()) + vectors + embedding


def _choose(
    found: list[Choice],
    table: MachineCatalog,
    models: list[StageModel],
    sample_bytes: dict[str, float],
    wanted: PlanRequest,
) -> MachineOption | None:
    """Returns the requested machine and number, else the cheapest in time, with GPUs if any has them."""
    if wanted.nodes is not None:
        name = wanted.machine or getattr(_best(found, table), "machine", None)
        if name is None:
            return None
        one = plan_option(name, find_machine(table, name), wanted.nodes, models, sample_bytes, table.assumptions)
        if one is None:
            ranks = find_machine(table, name).units * wanted.nodes
            raise UserError(
                f"--nodes {wanted.nodes}: the cascade does not fit on {ranks} ranks of {name}, or a batch_size is not "
                "a multiple of them; take another number"
            )
        return one
    if wanted.machine is not None:
        choice = next(choice for choice in found if choice.machine == wanted.machine)
        return choice.in_time or choice.fewest
    return _best(found, table)


def _best(found: list[Choice], table: MachineCatalog) -> MachineOption | None:
    with_gpus = [choice for choice in found if table.machines[choice.machine].gpus]
    return find_cheapest(with_gpus) or find_cheapest(found)


def _costs(plan: CostPlan) -> list[StageCost]:
    """Returns every stage on its machines, in the pipeline's order."""
    assert plan.chosen is not None
    table, chosen, wanted = plan.table, plan.chosen, plan.wanted
    data = wanted.data_machine or _data_machine(table, chosen.machine)
    data_machine = find_machine(table, data)
    nodes = wanted.data_nodes or _data_nodes(plan, data_machine)
    costs = []
    for stage, work in plan.works.items():
        name, count = (chosen.machine, chosen.nodes) if work.pool == "gpu" else (data, nodes)
        machine = table.machines[name]
        hours = estimate_hours(work, machine, count, plan.assumptions)
        dollars = hours.hours * count * get_price(machine, wanted.spot)
        costs.append(StageCost(stage, name, count, work.items, hours.hours, hours.bound, dollars, ""))
    machine = table.machines[chosen.machine]
    trained = []
    for group in chosen.groups:
        dollars = group.hours * chosen.nodes * get_price(machine, wanted.spot)
        setting = f"{group.fit.setting}, {group.fit.micro_batch} per rank, {group.fit.needed / 1e9:.0f} GB"
        samples = float(plan.config.train[group.stage].steps * plan.config.train[group.stage].batch_size)
        name = f"train.{group.stage}"
        trained.append(
            StageCost(name, chosen.machine, chosen.nodes, samples, group.hours, group.bound, dollars, setting)
        )
    return [*costs[:-1], *trained, costs[-1]]


def get_price(machine: Machine, spot: bool) -> float:
    """Returns dollars per hour; on demand if there is no spot price."""
    return machine.spot if spot and machine.spot is not None else machine.price


def _data_machine(table: MachineCatalog, training: str) -> str:
    """Returns the machine without GPUs that is cheapest per core, else the one that trains."""
    without = {name: one.price / one.cores for name, one in table.machines.items() if not one.gpus}
    return min(without, key=lambda name: without[name]) if without else training


def _data_nodes(plan: CostPlan, machine: Machine) -> int:
    """Returns the fewest (1, 2, 4, ...) on which the CPU stages take their share of the days."""
    nodes = 1
    works = [work for work in plan.works.values() if work.pool == "cpu"]
    while nodes < MOST_NODES and DATA_SHARE * plan.wanted.days * 24 < sum(
        estimate_hours(work, machine, nodes, plan.assumptions).hours for work in works
    ):
        nodes *= 2
    return nodes


def encode_plan(plan: CostPlan) -> dict[str, Any]:
    """Returns the plan as plain JSON values: bytes, seconds, hours and dollars."""
    models = [
        {
            "stage": f"train.{model.name}",
            "model": model.config.model,
            "parameters": model.parameters,
            "all_parameters": model.all_parameters,
            "side": model.side,
            "forward_flops_a_sample": model.forward,
            "update_flops": model.update_flops,
            "samples": model.samples,
            "host_ms_a_sample": model.host_ms,
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
        "captioner": asdict(plan.captioner) if plan.captioner else None,
        "rates": asdict(plan.rates),
        "storage": [asdict(volume) for volume in plan.volumes],
        "stored_bytes": sum_bytes(plan.volumes),
        "stages": [asdict(cost) for cost in plan.costs],
        "options": [
            _option_json(choice, one) for choice in plan.choices for one in (choice.fewest, choice.in_time) if one
        ],
        "does_not_fit": [choice.machine for choice in plan.choices if choice.fewest is None],
        "machines": {name: machine.model_dump() for name, machine in plan.table.machines.items()},
        "assumptions": plan.assumptions.model_dump(),
    }


def _option_json(choice: Choice, one: MachineOption) -> dict[str, Any]:
    stages = [
        {
            "stage": group.stage,
            "setting": str(group.fit.setting),
            "micro_batch": group.fit.micro_batch,
            "device_bytes": group.fit.needed,
            "step_seconds": group.step,
            "bound": group.bound,
            "loader_gbit": group.loader_gbit,
            "host_seconds": group.host,
        }
        for group in one.groups
    ]
    own = {"machine": one.machine, "nodes": one.nodes, "hours": one.hours, "dollars": one.dollars}
    return own | {"spot_dollars": one.spot_dollars, "in_time": one is choice.in_time, "stages": stages}
