"""The plan of a config: everything that `imagen-ray plan` prints. Starts neither Ray nor a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
from pipeline.planner.streams import StreamedStages, estimate_shared_hours, group_stages, plan_stream
from pipeline.planner.training import StageModel, TrainingGroup
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
    """A stage on the machines chosen for it.

    If it streams, ``hours`` are those that it would take by itself, and ``dollars`` its part of what the stream costs.
    """

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
    streams: list[StreamedStages] = field(default_factory=list)

    @property
    def hours(self) -> float:
        """Hours of all stages one after the other, those of a stream at the same time."""
        streamed = {stage for stream in self.streams for stage in stream.stages}
        alone = sum(cost.hours for cost in self.costs if cost.stage not in streamed)
        return alone + sum(stream.hours for stream in self.streams)

    @property
    def shards(self) -> int:
        """Shards of a data stage."""
        return max(1, round(self.rates.urls / self.config.listing.rows_per_shard))

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
    if chosen is None:
        return plan
    costs, streams = _costs(plan, chosen)
    return replace(plan, costs=costs, streams=streams)


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


def _costs(plan: CostPlan, chosen: MachineOption) -> tuple[list[StageCost], list[StreamedStages]]:
    """Returns every stage on its machines, in the pipeline's order, and which of them stream."""
    data = plan.wanted.data_machine or _data_machine(plan.table, chosen.machine)
    data_machine = find_machine(plan.table, data)
    groups = group_stages(plan.config, plan.works)
    pools = {
        "cpu": (data, plan.wanted.data_nodes or _data_nodes(plan, data_machine, groups)),
        "gpu": (chosen.machine, chosen.nodes),
    }
    costs: list[StageCost] = []
    streams: list[StreamedStages] = []
    for stages in groups:
        if len(stages) == 1:
            costs.append(_cost_stage(plan, stages[0], *pools[plan.works[stages[0]].pool]))
        else:
            stream = plan_stream({stage: plan.works[stage] for stage in stages}, pools, plan.shards, plan.table)
            costs += _cost_stream(plan, stream)
            streams.append(stream)
    trained = [_cost_training(plan, chosen, group) for group in chosen.groups]
    return [*costs[:-1], *trained, costs[-1]], streams


def _cost_stage(plan: CostPlan, stage: str, name: str, nodes: int) -> StageCost:
    work, machine = plan.works[stage], plan.table.machines[name]
    found = estimate_hours(work, machine, nodes, plan.assumptions)
    dollars = found.hours * nodes * get_price(machine, plan.wanted.spot)
    return StageCost(stage, name, nodes, work.items, found.hours, found.bound, dollars, "")


def _cost_stream(plan: CostPlan, stream: StreamedStages) -> list[StageCost]:
    """Returns the stages of a stream, which hold their machines until its end and share that cost by their hours."""
    costs = []
    for stage in stream.stages:
        shared = stream.machines_of(stage)
        price = get_price(plan.table.machines[shared.machine], plan.wanted.spot)
        alone = {one: _cost_stage(plan, one, shared.machine, shared.nodes) for one in shared.stages}
        part = alone[stage].hours / sum(cost.hours for cost in alone.values())
        costs.append(replace(alone[stage], dollars=stream.hours * shared.nodes * price * part))
    return costs


def _cost_training(plan: CostPlan, chosen: MachineOption, group: TrainingGroup) -> StageCost:
    dollars = group.hours * chosen.nodes * get_price(plan.table.machines[chosen.machine], plan.wanted.spot)
    setting = f"{group.fit.setting}, {group.fit.micro_batch} per rank, {group.fit.needed / 1e9:.0f} GB"
    config = plan.config.train[group.stage]
    samples, name = float(config.steps * config.batch_size), f"train.{group.stage}"
    return StageCost(name, chosen.machine, chosen.nodes, samples, group.hours, group.bound, dollars, setting)


def get_price(machine: Machine, spot: bool) -> float:
    """Returns dollars per hour; on demand if there is no spot price."""
    return machine.spot if spot and machine.spot is not None else machine.price


def _data_machine(table: MachineCatalog, training: str) -> str:
    """Returns the machine without GPUs that is cheapest per core, else the one that trains."""
    without = {name: one.price / one.cores for name, one in table.machines.items() if not one.gpus}
    return min(without, key=lambda name: without[name]) if without else training


def _data_nodes(plan: CostPlan, machine: Machine, groups: Sequence[Sequence[str]]) -> int:
    """Returns the fewest (1, 2, 4, ...) on which the CPU stages take their share of the days."""
    nodes = 1
    on_cpus = [[plan.works[stage] for stage in group if plan.works[stage].pool == "cpu"] for group in groups]
    while nodes < MOST_NODES and DATA_SHARE * plan.wanted.days * 24 < sum(
        estimate_shared_hours(works, machine, nodes, plan.assumptions).hours for works in on_cpus if works
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
        "streams": [asdict(stream) for stream in plan.streams],
        "hours": plan.hours,
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
