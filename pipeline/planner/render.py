"""A plan for people: tables, the assumptions beside them, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table as RichTable

from pipeline.planner.answers import answers
from pipeline.planner.faults import Simulated
from pipeline.planner.options import Choice, Option
from pipeline.planner.plan import Plan
from pipeline.planner.table import Assumptions
from pipeline.planner.units import count, flops, money, size, years
from pipeline.planner.volume import stored

GB = 1e9


def render(plan: Plan, simulated: Simulated | None) -> Group:
    """Everything, in the order in which one asks."""
    parts: list[RenderableType] = [*_networks(plan), *_memory(plan), *_storage(plan), *_options(plan)]
    if plan.chosen is not None:
        parts += [*_stages(plan), *_simulation(simulated)]
    return Group(*parts, *_assumptions(plan), "", "[bold]Who can train this, and with what?[/]", *answers(plan))


def _networks(plan: Plan) -> Iterable[RenderableType]:
    table = RichTable(
        "stage", "model", "parameters", "side", "forward, a sample", "an update", "samples", "in all", box=None
    )
    for model in plan.models:
        table.add_row(
            f"train.{model.name}",
            model.config.model,
            f"{model.parameters / 1e6:,.1f} M",
            f"{model.side} px",
            flops(model.forward),
            f"{flops(model.update_flops)} ({model.config.batch_size} samples)",
            count(model.samples),
            flops(model.update_flops * model.config.steps),
        )
    yield "[bold]Networks[/]: operations counted over the real U-Net (attention too), backward twice the forward"
    yield table
    yield (
        f"text encoder {plan.text.name}: {plan.text.width} wide, {plan.text.parameters / 1e6:,.0f} M parameters, "
        f"{flops(plan.text.flops_a_token)} a token ({plan.text.note}); CLIP {plan.clip.name}: "
        f"{flops(plan.clip.flops_a_pair)} a pair"
    )


def _memory(plan: Plan) -> Iterable[RenderableType]:
    ranks = plan.config.cluster.ranks
    table = RichTable("stage", "setting", "weights", "gradients", "optimizer", "average", "buckets", box=None)
    for name in ("activations", "GPU, all", "host"):
        table.add_column(name)
    for model in plan.models:
        for number, (setting, micro, memory) in enumerate(plan.memories(model)):
            own = setting.zero == model.config.zero_stage and setting.offload == model.config.offload
            sizes = (memory.weights, memory.gradients, memory.optimizer, memory.average, memory.buckets)
            cells = [size(part) for part in (*sizes, memory.activations, memory.device, memory.host)]
            label = f"train.{model.name}, {micro} a rank" if number == 0 else ""
            table.add_row(label, f"{setting}{'  <- config' if own else ''}", *cells)
    yield ""
    yield f"[bold]Memory a rank[/]: {ranks} ranks (cluster.ranks), the config's micro batch and precision"
    yield table


def _storage(plan: Plan) -> Iterable[RenderableType]:
    rates, price = plan.rates, plan.assumptions.store_dollars_gb_month
    table = RichTable("artifact", "rows", "bytes a row", "size", "$ a month", box=None)
    for volume in plan.volumes:
        row = size(volume.bytes / volume.rows) if volume.rows else ""
        cost = f"{volume.bytes / GB * price:,.2f}"
        note = "" if volume.chosen else "  (not chosen)"
        table.add_row(volume.name + note, count(volume.rows), row, size(volume.bytes), cost)
    total = stored(plan.volumes)
    table.add_row("[bold]all that is chosen[/]", "", "", size(total), f"{total / GB * price:,.2f}")
    yield ""
    yield (
        f"[bold]Storage[/]: {count(rates.urls)} URLs ({rates.origin['urls']}), {count(rates.pictures)} pictures "
        f"({rates.success:.0%}), {count(rates.pairs)} pairs kept ({rates.keep:.0%} of them), "
        f"{rates.tokens:.1f} tokens a caption"
    )
    yield table
    measured = sorted(name for name, origin in rates.origin.items() if origin.startswith("measured"))
    if measured:
        yield f"{', '.join(measured)}: measured in {plan.wanted.measured}"


def _options(plan: Plan) -> Iterable[RenderableType]:
    table = RichTable("machine", "number", "training", "on demand", "spot", "settings, sample a rank, GB", box=None)
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
        f"[bold]Training on each machine[/]: on the fewest that it fits on, and on the fewest (1, 2, 4, ...) that take "
        f"{plan.wanted.days:g} days or less; all stages, one after another"
    )
    yield table


def _option(plan: Plan, choice: Choice, one: Option) -> list[str]:
    settings = "; ".join(
        f"{gang.stage}: {gang.fit.setting}, {gang.fit.micro_batch}, {gang.fit.needed / GB:.0f}" for gang in one.gangs
    )
    spot = "" if one.spot_dollars is None else money(one.spot_dollars)
    first = choice.machine if one is choice.fewest else ""
    return [first, str(one.nodes), years(one.hours), money(one.dollars), spot, settings]


def _stages(plan: Plan) -> Iterable[RenderableType]:
    assert plan.chosen is not None
    table = RichTable("stage", "machines", "items", "time", "held up by", "money", "how", box=None)
    for cost in plan.costs:
        where, how = f"{cost.nodes} x {cost.machine}", cost.setting
        table.add_row(cost.stage, where, count(cost.items), years(cost.hours), cost.bound, money(cost.dollars), how)
    total = sum(cost.dollars for cost in plan.costs)
    table.add_row("[bold]all[/]", "", "", years(sum(cost.hours for cost in plan.costs)), "", money(total), "")
    loads = ", ".join(f"{gang.stage} {gang.loader_gbit:.2g}" for gang in plan.chosen.gangs)
    kind = "spot" if plan.wanted.spot else "on demand"
    yield ""
    yield f"[bold]Stage by stage[/], {kind}; listing, card, evaluate and report are small and left out"
    yield table
    yield f"Gbit/s that a training machine reads of pixels and embeddings: {loads}"


def _simulation(simulated: Simulated | None) -> Iterable[RenderableType]:
    if simulated is None:
        return
    yield ""
    yield (
        f"[bold]With failures[/]: {simulated.rate:.2g} a machine and hour, up to {simulated.nodes} machines; stages "
        "that do not wait for each other side by side, the cascade's in turn. "
        f"Without failures {years(simulated.quiet)}; "
        + (
            f"simulated {years(simulated.mean)} in the mean, {years(simulated.worst)} at worst, "
            f"{simulated.failures:.0f} failures"
            if not simulated.problem
            else f"[red]with them it never ends[/]: {simulated.problem}"
        )
    )
    for stage, (own, best) in simulated.checkpoints.items():
        yield f"  train.{stage}.checkpoint_every={own}; least is lost at about {best} (Young), were each waited for"


def _assumptions(plan: Plan) -> Iterable[RenderableType]:
    table = RichTable("assumption", "value", "why", box=None)
    for name, field in Assumptions.model_fields.items():
        table.add_row(name, f"{getattr(plan.assumptions, name):g}", field.description)
    machines = RichTable("machine", "what", "TFLOP/s", "MFU", "GB", "cores", "$ an hour", "spot", "from", box=None)
    for name, one in plan.table.machines.items():
        what = f"{one.gpus} x {one.device}" if one.gpus else one.device
        spot = "" if one.spot is None else f"{one.spot:g}"
        cells = (f"{one.tflops:g}", f"{one.mfu:.0%}", f"{one.memory_gb:g}", str(one.cores), f"{one.price:g}", spot)
        machines.add_row(name, what, *cells, one.source)
    yield ""
    yield "[bold]Assumptions[/]: change them in a file for --machines (pipeline/planner/table.yaml shows its form)"
    yield table
    yield machines
