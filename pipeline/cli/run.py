"""``run``: the whole pipeline; ``report``: its page again."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from pipeline.cli.options import ConfigPath, Overrides, RunFolder, complete_stage, print_text


def run_pipeline(
    config: ConfigPath,
    overrides: Overrides = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="stop after this stage; --dry-run lists them", autocompletion=complete_stage
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="keep this finished stage although its code or libraries changed; repeatable",
            autocompletion=complete_stage,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print which stages are cached and which would run, and why; run nothing")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="write where the time goes as a Chrome trace, for ui.perfetto.dev"),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="restart the driver up to this many times if it is killed")] = 0,
) -> None:
    """Run the pipeline. Finished stages are skipped."""
    if dry_run:
        _print_plan(config, overrides or [], until, keep or [])
        return
    if retries:
        from pipeline.execution.supervisor import supervise_driver

        options = ["--until", until] if until else []
        options += [word for stage in keep or [] for word in ("--keep", stage)]
        options += ["--profile", profile] if profile else []
        raise typer.Exit(supervise_driver(["run", config, *(overrides or []), *options], retries))
    from pipeline.profile import profiled, span

    with profiled(profile):
        with span("imports and config"):
            from pipeline.config_loading import load_config
            from pipeline.execution import executor

            loaded = load_config(config, overrides or [])
        finished = executor.run_pipeline(loaded, shlex.join(["imagen-ray", *sys.argv[1:]]), until, keep or [])
    print(finished.path("report.html") if until is None else finished.root)


def _print_plan(config: str, overrides: list[str], until: str | None, keep: list[str]) -> None:
    from rich.table import Table

    from pipeline.config_loading import load_config
    from pipeline.execution.plan import cut_plan, plan_run
    from pipeline.store.run import Run

    loaded = load_config(config, overrides)
    table = Table("stage", "state", "fingerprint", "why", box=None)
    for item in cut_plan(plan_run(loaded, Run(loaded.run), keep), until):
        state = "[green]cached[/]" if item.artifact else "[yellow]would run[/]"
        table.add_row(item.stage.name, state, item.fingerprint, item.reason)
    print_text(table)


def build_report(
    folder: RunFolder,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print the Markdown summary, for a pull request, instead of the path")
    ] = False,
) -> None:
    """Rebuild the report of a run. Prints its path."""
    from dataprep.io import storage
    from pipeline.report.build import MARKDOWN, publish_report
    from pipeline.store.run import Run

    run = Run(folder)
    path = publish_report(run)
    print(storage.read_bytes(run.path(MARKDOWN)).decode() if markdown else path)
