"""What a plan comes to, in sentences: how one person or a small team can train this, and with what."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.planner.options import Option, cheapest, cheapest_box, fastest_box
from pipeline.planner.plan import Plan, price
from pipeline.planner.units import money, size, years
from pipeline.planner.volume import stored

BUDGETS = (2_000, 20_000, 100_000)


def answers(plan: Plan) -> Iterator[str]:
    """One sentence an answer."""
    with_gpus = [choice for choice in plan.choices if plan.table.machines[choice.machine].gpus] or plan.choices
    if all(choice.fewest is None for choice in plan.choices):
        yield "Nobody with these machines: no setting fits on any number of them. Take a smaller model or more memory."
        return
    if quick := cheapest(with_gpus):
        yield f"Cheapest{_timely(plan, quick)}: {_told(quick)}."
    if fast := fastest_box(with_gpus):
        yield f"Fastest single machine: {_told(fast)}."
    box = cheapest_box(with_gpus)
    if box and box is not fast:
        yield f"Cheapest single machine: {_told(box)}."
    missing = [choice.machine for choice in plan.choices if choice.fewest is None]
    if missing:
        yield f"It does not fit on {', '.join(missing)} at all."
    several = [choice for choice in plan.choices if choice.fewest and choice.fewest.nodes > 1]
    if several:
        told = ", ".join(f"{choice.machine} ({choice.fewest.nodes})" for choice in several if choice.fewest)
        yield f"These need more than one machine for their memory alone: {told}."
    total = stored(plan.volumes)
    month = money(total / 1e9 * plan.assumptions.store_dollars_gb_month)
    yield f"What it stores, {size(total)}, costs {month} a month; what no later stage reads can be deleted."
    yield from _budgets(plan, with_gpus[0].machine if quick is None else quick.machine, quick)


def _timely(plan: Plan, one: Option) -> str:
    return f" within {plan.wanted.days:g} days" if one.hours <= plan.wanted.days * 24 else ", however long it takes"


def _told(one: Option) -> str:
    spot = "" if one.spot_dollars is None else f", {money(one.spot_dollars)} spot"
    kind = f"{one.nodes} x {one.machine}"
    return f"{kind}, {years(one.hours)} of training, {money(one.dollars)} on demand{spot}"


def _budgets(plan: Plan, machine: str, one: Option | None) -> Iterator[str]:
    """What shares of the steps small budgets buy on the cheapest machine."""
    if one is None or one.dollars == 0:
        return
    each = one.dollars / sum(model.samples for model in plan.models)
    spent = sum(cost.dollars for cost in plan.costs if not cost.stage.startswith("train."))
    parts = []
    for budget in BUDGETS:
        left = budget - spent
        share = max(0.0, left / one.dollars)
        if share >= 1:
            parts.append(f"${budget:,} pays for all of it")
            break
        samples = left / each / len(plan.models)
        parts.append(
            f"${budget:,} for {share:.2%} of the steps"
            + (f" ({samples / 1e6:,.0f}M samples a stage)" if left > 0 else "")
        )
    rate = price(plan.table.machines[machine], False)
    yield f"On {machine} (${rate:g} an hour), with {money(spent)} for data, embeddings and samples: {'; '.join(parts)}."
    if one.dollars > BUDGETS[-1]:
        yield (
            "A small team trains a smaller cascade on fewer samples: configs/small_team.yaml is such a one, and what a "
            "change of model, steps or batch_size saves is seen by giving it here: "
            "`imagen-ray plan CONFIG train.base.steps=100000`."
        )
