"""The conclusions of a plan in sentences: who can train this, on what."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.planner.choices import MachineOption, find_cheapest, find_cheapest_machine, find_fastest_machine
from pipeline.planner.plan import CostPlan, get_price
from pipeline.planner.storage import sum_bytes
from pipeline.units import HOUR, format_bytes, format_duration, format_money

BUDGETS = (2_000, 20_000, 100_000)


def answer_questions(plan: CostPlan) -> Iterator[str]:
    """Yields one sentence per conclusion."""
    with_gpus = [choice for choice in plan.choices if plan.table.machines[choice.machine].gpus] or plan.choices
    if all(choice.fewest is None for choice in plan.choices):
        yield "No setting fits on any number of these machines; use a smaller model or machines with more memory."
        return
    if quick := find_cheapest(with_gpus):
        yield f"Cheapest{_describe_deadline(plan, quick)}: {_describe_option(quick)}."
    if fast := find_fastest_machine(with_gpus):
        yield f"Fastest single machine: {_describe_option(fast)}."
    box = find_cheapest_machine(with_gpus)
    if box and box is not fast:
        yield f"Cheapest single machine: {_describe_option(box)}."
    missing = [choice.machine for choice in plan.choices if choice.fewest is None]
    if missing:
        yield f"It does not fit on {', '.join(missing)} at all."
    several = [choice for choice in plan.choices if choice.fewest and choice.fewest.nodes > 1]
    if several:
        names = ", ".join(f"{choice.machine} ({choice.fewest.nodes})" for choice in several if choice.fewest)
        yield f"More than one machine is needed for memory alone: {names}."
    total = sum_bytes(plan.volumes)
    month = format_money(total / 1e9 * plan.assumptions.store_dollars_gb_month)
    yield f"Storage of {format_bytes(total)} costs {month} a month; what no later stage reads can be deleted."
    yield from _answer_budgets(plan, with_gpus[0].machine if quick is None else quick.machine, quick)


def _describe_deadline(plan: CostPlan, one: MachineOption) -> str:
    return f" within {plan.wanted.days:g} days" if one.hours <= plan.wanted.days * 24 else ", however long it takes"


def _describe_option(one: MachineOption) -> str:
    spot = "" if one.spot_dollars is None else f", {format_money(one.spot_dollars)} spot"
    kind = f"{one.nodes} x {one.machine}"
    return f"{kind}, {format_duration(one.hours * HOUR)} of training, {format_money(one.dollars)} on demand{spot}"


def _answer_budgets(plan: CostPlan, machine: str, one: MachineOption | None) -> Iterator[str]:
    """What small budgets buy on the cheapest machine, as shares of the steps."""
    if one is None or one.dollars == 0:
        return
    each = one.dollars / sum(model.samples for model in plan.models)
    spent = sum(cost.dollars for cost in plan.costs if not cost.stage.startswith("train."))
    parts = []
    for budget in BUDGETS:
        left = budget - spent
        share = max(0.0, left / one.dollars)
        if share >= 1:
            parts.append(f"${budget:,} pays for everything")
            break
        samples = left / each / len(plan.models)
        parts.append(
            f"${budget:,} for {share:.2%} of the steps"
            + (f" ({samples / 1e6:,.0f}M samples per stage)" if left > 0 else "")
        )
    rate = get_price(plan.table.machines[machine], False)
    data = f"{format_money(spent)} for data, embeddings and samples"
    yield f"On {machine} (${rate:g} per hour), with {data}: {'; '.join(parts)}."
    if one.dollars > BUDGETS[-1]:
        yield (
            "For a small team, configs/small_team.yaml trains a smaller cascade on fewer samples. Overrides show "
            "what a change of model, steps or batch_size saves: `imagen-ray plan CONFIG train.base.steps=100000`."
        )
