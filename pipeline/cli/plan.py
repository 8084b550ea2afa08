"""``plan`` and ``calibrate``: what a config will cost, and what this machine can do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dataprep.io.seeds import MAX_SEED
from pipeline.cli.options import AsJson, ConfigPath, Overrides, complete_run, print_json, print_text


def plan_costs(
    config: ConfigPath,
    overrides: Overrides = None,
    machines: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML table of machines and assumptions; default: our own"),
    ] = None,
    machine: Annotated[str | None, typer.Option(help="machine of the table to train on; default: all")] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="number of these machines; default: the fewest that finish in --days")
    ] = None,
    data_machine: Annotated[str | None, typer.Option(help="machine for the stages that need no GPU")] = None,
    data_nodes: Annotated[int | None, typer.Option(min=1, help="number of these machines")] = None,
    days: Annotated[float, typer.Option(min=0.01, help="days that training may take")] = 30.0,
    spot: Annotated[bool, typer.Option("--spot", help="plan with spot prices and interruptions")] = False,
    measured: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="take rates and sizes from this run", autocompletion=complete_run),
    ] = None,
    urls: Annotated[int | None, typer.Option(min=1, help="number of rows in the list")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of the simulated failures")] = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate time, memory and cost of a config. Starts nothing."""
    from pipeline.config_loading import load_config
    from pipeline.planner.catalog import load_table
    from pipeline.planner.failures import simulate_plan
    from pipeline.planner.plan import PlanRequest, encode_plan, make_plan
    from pipeline.planner.render import render_plan

    request = PlanRequest(
        machine=machine,
        nodes=nodes,
        data_machine=data_machine,
        data_nodes=data_nodes,
        days=days,
        spot=spot,
        measured=measured,
        urls=urls,
    )
    made = make_plan(load_config(config, overrides or []), load_table(machines), request)
    simulated = simulate_plan(made, seed)
    if as_json:
        print_json(encode_plan(made) | {"simulation": asdict(simulated) if simulated else None})
    else:
        print_text(render_plan(made, simulated))


def calibrate_plan(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="table to write, for `plan --machines`")] = Path("machines.yaml"),
    name: Annotated[str, typer.Option(help="name of this machine in the table")] = "here",
    price: Annotated[float, typer.Option(min=0, help="its price in dollars per hour")] = 0.0,
    network: Annotated[
        float, typer.Option(min=0.001, help="its bandwidth to other machines and the internet in Gbit/s")
    ] = 1.0,
) -> None:
    """Measure this machine for `plan`. Times matrix products, a training step per stage, encoders, JPEG, disk."""
    from pipeline.config_loading import load_config
    from pipeline.planner.calibrate import calibrate_machine, check_table, write_entry

    check_table(out)
    measured = calibrate_machine(load_config(config, overrides or []), price, network)
    write_entry(out, name, measured.machine)
    for line in measured.lines:
        print(line)
    print(out)
