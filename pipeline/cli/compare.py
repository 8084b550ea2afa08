"""``compare``: two runs on the same prompts and seeds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dataprep.io.errors import UserError
from dataprep.io.outputs import check_output_file
from dataprep.io.seeds import MAX_SEED
from pipeline.cli.options import AsJson, complete_run, print_json


def compare_runs(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN_A RUN_B",
            help="run folders, or RUN@FINGERPRINT of a sample stage",
            autocompletion=complete_run,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML page to write")] = Path("compare.html"),
    blind: Annotated[
        Path | None, typer.Option(help="also write this HTML page: a blind A/B test to send to raters")
    ] = None,
    count: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="count the choices that raters saved; repeatable")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="image pairs to show")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of the blind test's order and sides")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare the images of two runs. Says which run is better, on the same prompts and seeds, and how sure that is."""
    if count:
        _print_choices(count, as_json)
        return
    if len(runs or []) != 2:
        raise UserError(f"compare: {len(runs or [])} runs given; give RUN_A and RUN_B, or --count FILE")
    check_output_file(out)
    if blind:
        check_output_file(blind, "--blind")
        if blind.absolute() == out.absolute():
            raise UserError(f"--blind {blind}: is --out too; give two names")
    from pipeline.compare.blind_test import render_blind_test
    from pipeline.compare.measures import measure_pairs, state_verdict
    from pipeline.compare.page import render_comparison
    from pipeline.compare.runs import list_differences, load_compared_run, load_pairs

    a, b = (load_compared_run(name) for name in runs or [])
    found = load_pairs(a, b)
    if blind:
        blind.parent.mkdir(parents=True, exist_ok=True)
        blind.write_text(render_blind_test(a, b, found, pairs, seed), encoding="utf-8")
    rows = measure_pairs(a, b, found)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_comparison(a, b, found, rows, pairs), encoding="utf-8")
    pages = [str(path) for path in (out, blind) if path]
    if as_json:
        document = {"a": a.name, "b": b.name, "pairs": len(found), "verdict": state_verdict(rows)}
        measures = [asdict(row) for row in rows]
        print_json(document | {"measures": measures, "differences": list_differences(a, b), "pages": pages})
        return
    print("\n".join([state_verdict(rows), *pages]))


def _print_choices(files: list[str], as_json: bool) -> None:
    from pipeline.compare.blind_test import count_choices, summarize_choices

    counted = count_choices(files)
    if as_json:
        print_json(counted)
    else:
        print("\n".join(summarize_choices(counted)))
