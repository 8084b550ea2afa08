"""``verify``, ``trace`` and ``forget``: what a run's artifacts hold, and taking samples out of them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dataprep.io.wording import count_of
from pipeline.cli.options import AsJson, RunFolder, print_json, print_text
from pipeline.runtime.errors import StageError


def verify_run(folder: RunFolder, as_json: AsJson = False) -> None:
    """Check every output of a run by hash and row count. Exits with 1 if one changed or a row is unaccounted for."""
    from pipeline.lineage.row_balance import find_unaccounted_rows
    from pipeline.store.run import Run, verify_outputs

    run, stages, changed, sums = Run(folder), [], 0, 0
    unaccounted = find_unaccounted_rows(run)
    for stage, files, problems in verify_outputs(run):
        rows = unaccounted[stage]
        stages.append({"stage": stage, "files": files, "problems": problems + rows})
        changed, sums = changed + len(problems), sums + len(rows)
        if not as_json:
            states = [f"[red]{len(problems)} differ[/]"] if problems else []
            states += ["[red]rows do not add up[/]"] if rows else []
            print_text(f"{stage:<14} {count_of(files, 'file'):>11}  {', '.join(states) or '[green]ok[/]'}")
            for problem in problems + rows:
                print_text(f"  {problem}", markup=False)
    if as_json:
        print_json({"run": run.root, "ok": not changed + sums, "stages": stages})
    wrong = [
        (changed, "file differs from its manifest", "files differ from their manifests"),
        (sums, "sum of rows is wrong", "sums of rows are wrong"),
    ]
    if found := [count_of(*item) for item in wrong if item[0]]:
        raise StageError(f"{'; '.join(found)}; delete the folder of the stage and run again")


def trace_sample(
    folder: RunFolder,
    sample: Annotated[str, typer.Argument(metavar="KEY|URL", help="a sample's key, such as 000120034, or its URL")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per line and row")] = False,
) -> None:
    """Trace a sample through all stages. Shows its source, each decision about it, the models trained on it."""
    from pipeline.lineage import trace

    for found in trace.trace_sample(folder, sample):
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
        else:
            print_text(trace.render_trace(found))


def forget_samples(
    folder: RunFolder,
    samples: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL|KEY...", help="samples to remove; none: finish a forget that was interrupted"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what would change; change nothing")] = False,
) -> None:
    """Remove samples from all artifacts of a run. Lists the models that were trained on them."""
    from pipeline.lineage import forget

    result = forget.forget_samples(folder, samples or [], dry_run)
    print_text(forget.render_forget_result(result, dry_run))
