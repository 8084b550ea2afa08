"""A plan as tables for the terminal, with its assumptions and conclusions."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table as RichTable

from dataprep.io.wording import count_of
from pipeline.planner.catalog import Assumptions
from pipeline.planner.choices import Choice, MachineOption
from pipeline.planner.failures import FailureEstimate
from pipeline.planner.plan import CostPlan
from pipeline.planner.storage import sum_bytes
from pipeline.planner.streams import StreamedStages
from pipeline.planner.summary import answer_questions
from pipeline.planner.training import StageModel
from pipeline.units import HOUR, format_bytes, format_count, format_duration, format_flops, format_money

GB = 1e9


def render_plan(plan: CostPlan, simulated: FailureEstimate | None) -> Group:
    """Returns the whole plan for the terminal."""
    parts: list[RenderableType] = [*_networks(plan), *_memory(plan), *_storage(plan), *_options(plan)]
    if plan.chosen is not None:
        parts += [*_stages(plan), *_simulation(simulated, bool(plan.streams))]
    return Group(
        *parts, *_assumptions(plan), "", "[bold]Who can train this, and with what?[/]", *answer_questions(plan)
    )


def _describe_parameters(model: StageModel) -> str:
    if model.config.adapter is None:
        return f"{model.parameters / 1e6:,.1f} M"
    return f"{model.parameters / 1e6:,.2f} M of {model.all_parameters / 1e6:,.1f} M frozen"


def _networks(plan: CostPlan) -> Iterable[RenderableType]:
    table = RichTable(
        "stage", "model", "parameters", "side", "forward / sample", "one step", "samples", "in all", box=None
    )
    for model in plan.models:
        table.add_row(
            f"train.{model.name}",
            model.config.model,
            _describe_parameters(model),
            f"{model.side} px",
            format_flops(model.forward),
            f"{format_flops(model.update_flops)} ({model.config.batch_size} samples)",
            format_count(model.samples),
            format_flops(model.update_flops * model.config.steps),
        )
    yield (
        "[bold]Networks[/]: FLOPs counted on the real network (including attention), backward twice the forward, once "
        "where weights are frozen"
    )
    yield table
    yield (
        f"text encoder {plan.text.name}: {plan.text.width} wide, {plan.text.parameters / 1e6:,.0f} M parameters, "
        f"{format_flops(plan.text.flops_per_token)} per token ({plan.text.note}); CLIP {plan.clip.name}: "
        f"{format_flops(plan.clip.flops_per_pair)} per pair"
    )
    if plan.captioner is not None:
        yield (
            f"captions by {plan.captioner.name}: {plan.captioner.parameters / 1e6:,.0f} M parameters "
            f"({plan.captioner.note})"
        )


def _memory(plan: CostPlan) -> Iterable[RenderableType]:
    table = RichTable("stage", "setting", "weights", "gradients", "optimizer", "EMA", "buckets", box=None)
    for name in ("activations", "GPU, all", "host"):
        table.add_column(name)
    for model in plan.models:
        for number, (setting, micro, memory) in enumerate(plan.memories(model)):
            own = (setting.zero, setting.offload) == (model.own_setting().zero, model.config.offload)
            sizes = (memory.weights, memory.gradients, memory.optimizer, memory.ema, memory.buckets)
            cells = [format_bytes(part) for part in (*sizes, memory.activations, memory.device, memory.host)]
            ranks = plan.ranks_of(model)
            label = f"train.{model.name}, {micro} per rank, {count_of(ranks, 'rank')}" if number == 0 else ""
            table.add_row(label, f"{setting}{'  <- config' if own else ''}", *cells)
    yield ""
    yield "[bold]Memory per rank[/]: ranks, micro batch and precision of the config"
    yield table


def _storage(plan: CostPlan) -> Iterable[RenderableType]:
    rates, price = plan.rates, plan.assumptions.store_dollars_gb_month
    table = RichTable("artifact", "rows", "bytes / row", "size", "$ / month", box=None)
    for volume in plan.volumes:
        row = format_bytes(volume.bytes / volume.rows) if volume.rows else ""
        cost = f"{volume.bytes / GB * price:,.2f}"
        note = "" if volume.chosen else "  (alternative)"
        table.add_row(volume.name + note, format_count(volume.rows), row, format_bytes(volume.bytes), cost)
    total = sum_bytes(plan.volumes)
    table.add_row("[bold]total of the config[/]", "", "", format_bytes(total), f"{total / GB * price:,.2f}")
    yield ""
    yield (
        f"[bold]Storage[/]: {format_count(rates.urls)} URLs ({rates.origin['urls']}), "
        f"{format_count(rates.images)} images ({rates.success:.0%}), {format_count(rates.pairs)} kept pairs "
        f"({rates.keep:.0%} of them), {rates.tokens:.1f} tokens per caption"
    )
    yield table
    measured = sorted(name for name, origin in rates.origin.items() if origin.startswith("measured"))
    if measured:
        yield f"{', '.join(measured)}: measured in {plan.wanted.measured}"


def _options(plan: CostPlan) -> Iterable[RenderableType]:
    table = RichTable("machine", "number", "training", "on demand", "spot", "settings, micro batch, GB", box=None)
    for choice in plan.choices:
        if choice.fewest is None:
            table.add_row(choice.machine, "", "does not fit", "", "", "")
            continue
        table.add_row(*_option(plan, choice, choice.fewest))
        if choice.in_time and choice.in_time is not choice.fewest:
            table.add_row(*_option(plan, choice, choice.in_time))
        elif choice.in_time is None:
            table.add_row("", "", f"not within {plan.wanted.days:g} days on 1024", "", "", "")
    yield ""
    yield (
        f"[bold]Training on each machine[/]: the fewest that it fits on, and the fewest (1, 2, 4, ...) that take "
        f"{plan.wanted.days:g} days or less; all stages, one after the other"
    )
    yield table


def _option(plan: CostPlan, choice: Choice, one: MachineOption) -> list[str]:
    settings = "; ".join(
        f"{group.stage}: {group.fit.setting}, {group.fit.micro_batch}, {group.fit.needed / GB:.0f}"
        for group in one.groups
    )
    spot = "" if one.spot_dollars is None else format_money(one.spot_dollars)
    first = choice.machine if one is choice.fewest else ""
    return [first, str(one.nodes), format_duration(one.hours * HOUR), format_money(one.dollars), spot, settings]


def _stages(plan: CostPlan) -> Iterable[RenderableType]:
    assert plan.chosen is not None
    table = RichTable("stage", "machines", "items", "time", "bound by", "money", "how", box=None)
    streams = {stage: stream for stream in plan.streams for stage in stream.stages}
    for cost in plan.costs:
        where, stream = f"{cost.nodes} x {cost.machine}", streams.get(cost.stage)
        duration = format_duration(cost.hours * HOUR) + (" alone" if stream else "")
        money = format_money(cost.dollars)
        table.add_row(cost.stage, where, format_count(cost.items), duration, cost.bound, money, cost.setting)
        if stream and cost.stage == stream.stages[-1]:
            table.add_row(*_stream(plan, stream))
    total = format_money(sum(cost.dollars for cost in plan.costs))
    table.add_row("[bold]all[/]", "", "", format_duration(plan.hours * HOUR), "", total, "")
    loads = ", ".join(f"{group.stage} {group.loader_gbit:.2g}" for group in plan.chosen.groups)
    kind = "spot" if plan.wanted.spot else "on demand"
    yield ""
    yield f"[bold]Stage by stage[/], {kind}; listing, card, evaluate and report are small and not counted"
    yield table
    yield f"Gbit/s of pixels and embeddings that a training machine reads: {loads}"


def _stream(plan: CostPlan, stream: StreamedStages) -> list[str]:
    """Returns the row of stages that run at the same time."""
    where = ", ".join(f"{one.nodes} x {one.machine}" for one in stream.machines)
    bound = f"{stream.slowest.busy.bound} of {stream.slowest.machine}"
    money = format_money(sum(cost.dollars for cost in plan.costs if cost.stage in stream.stages))
    what = f"{', '.join(stream.stages)} at the same time (cluster.stream)"
    return ["= together", where, "", format_duration(stream.hours * HOUR), bound, money, what]


def _simulation(simulated: FailureEstimate | None, streamed: bool) -> Iterable[RenderableType]:
    if simulated is None:
        return
    yield ""
    yield (
        f"[bold]With failures[/]: {simulated.rate:.2g} per machine and hour, up to {simulated.nodes} machines; "
        f"independent stages {'and those that stream ' if streamed else ''}run concurrently, those of the cascade in "
        "turn. "
        f"Without failures {format_duration(simulated.quiet * HOUR)}; "
        + (
            f"simulated {format_duration(simulated.mean * HOUR)} on average, "
            f"{format_duration(simulated.worst * HOUR)} at worst, {simulated.failures:.0f} failures"
            if not simulated.problem
            else f"[red]with failures it never ends[/]: {simulated.problem}"
        )
    )
    for stage, (own, best) in simulated.checkpoints.items():
        yield f"  train.{stage}.checkpoint_every={own}; optimum if training waits for each: {best} (Young)"


def _assumptions(plan: CostPlan) -> Iterable[RenderableType]:
    table = RichTable("assumption", "value", "why", box=None)
    for name, field in Assumptions.model_fields.items():
        table.add_row(name, f"{getattr(plan.assumptions, name):g}", field.description)
    machines = RichTable("machine", "what", "TFLOP/s", "MFU", "GB", "cores", "$ / hour", "spot", "source", box=None)
    for name, one in plan.table.machines.items():
        what = f"{one.gpus} x {one.device}" if one.gpus else one.device
        spot = "" if one.spot is None else f"{one.spot:g}"
        cells = (f"{one.tflops:g}", f"{one.mfu:.0%}", f"{one.memory_gb:g}", str(one.cores), f"{one.price:g}", spot)
        machines.add_row(name, what, *cells, one.source)
    yield ""
    yield "[bold]Assumptions[/]: change them with --machines FILE (form: pipeline/planner/table.yaml)"
    yield table
    yield machines
