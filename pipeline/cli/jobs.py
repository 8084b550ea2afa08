"""``submit``, ``status`` and ``logs``: runs as jobs of a Ray cluster, and how far a run is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.cli.options import Address, AsJson, ConfigPath, Overrides, RunFolder, complete_run, print_json, print_text


def submit_run(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Address = None,
    wait: Annotated[bool, typer.Option(help="follow the log and exit with the job's status")] = True,
) -> None:
    """Run the pipeline as a job on a Ray cluster. Attaches to the job if one already works on the run."""
    from pipeline.jobs.submit import submit_job

    raise typer.Exit(submit_job(config, overrides or [], address, wait))


def show_status(
    folder: RunFolder,
    address: Annotated[
        str | None,
        typer.Option(help="dashboard of a cluster, such as http://head:8265, whose newest job of the run is shown too"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a run. One row per stage; with --address also its job on that cluster."""
    from pipeline.jobs.status import describe_newest_job, read_status, render_status

    status = read_status(folder)
    job = None if address is None else describe_newest_job(folder, address)
    if as_json:
        print_json(asdict(status) | ({} if address is None else {"job": job}))
        return
    if job is not None:
        print_text(job, markup=False)
    print_text(render_status(status))


def show_logs(
    target: Annotated[
        str, typer.Argument(metavar="RUN|JOB", help="run folder, or name of a job", autocompletion=complete_run)
    ],
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="until the job ends; otherwise only what has been logged so far")] = True,
) -> None:
    """Print the log of a run's newest job. Exits with the job's status."""
    from pipeline.jobs.client import show_log

    raise typer.Exit(show_log(target, address, follow))
