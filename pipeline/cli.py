"""The command line: ``imagen-ray``, the same as ``python -m pipeline``.

Exit status: 0 done; 2 the user's mistake, told in one line; 1 a failure at run time, told with the stage, the log and
the command that resumes. ``--verbose`` adds the traceback.
"""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataprep.schema import UserError
from pipeline.context import StageError
from pipeline.own_copy import run_from_own_copy
from pipeline.progress import console

app = typer.Typer(
    name="imagen-ray",
    add_completion=False,
    rich_markup_mode=None,
    help="From URLs and captions to a trained, evaluated text-to-image cascade. --verbose shows tracebacks.",
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML config, such as configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="values that replace the config's")
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="the run folder (the config's `run`)")]

Address = Annotated[
    str | None, typer.Option(help="the cluster's dashboard, such as http://head:8265; default: RAY_API_SERVER_ADDRESS")
]


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="stop after this stage")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="keep this finished stage over a change of code")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what is cached and what would run; run nothing")
    ] = False,
    retries: Annotated[int, typer.Option(min=0, help="start the driver again so often when it is killed")] = 0,
) -> None:
    """Run the pipeline; stages that are finished are not run again."""
    if retries and not dry_run:
        from pipeline.supervise import supervise

        options = [
            *(["--until", until] if until else []),
            *(word for stage in keep or [] for word in ("--keep", stage)),
        ]
        raise typer.Exit(supervise(["run", config, *(overrides or []), *options], retries))
    from pipeline.config import load_config
    from pipeline.executor import execute, plan, up_to
    from pipeline.store import Run

    loaded = load_config(config, overrides or [])
    if dry_run:
        planned = up_to(plan(loaded, Run(loaded.run), keep or []), until)
        table = Table("stage", "state", "fingerprint", "why", box=None)
        for item in planned:
            state = "[green]cached[/]" if item.artifact else "[yellow]would run[/]"
            table.add_row(item.stage.name, state, item.fingerprint, item.reason)
        _out().print(table)
        return
    finished = execute(loaded, shlex.join(["imagen-ray", *sys.argv[1:]]), until, keep or [])
    report = finished.path("report.html")
    print(report if until is None else finished.root)


@app.command()
def status(folder: RunFolder, address: Address = None) -> None:
    """Show where a run stands, stage by stage, and with --address the job that works on it."""
    from pipeline.status import describe_run, run_job

    if address is not None:
        _out().print(run_job(folder, address))
    _out().print(describe_run(folder))


@app.command()
def sample(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or what `export` wrote")],
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="what to draw")] = None,
    prompts_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="a prompt a line (or .csv, .tsv, .jsonl); --out is a folder")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="images a prompt")] = 1,
    best_of: Annotated[int, typer.Option(min=1, help="candidates an image, of which CLIP picks the best")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same images")] = 0,
    out: Annotated[Path, typer.Option(help="PNG to write; several images also make a grid")] = Path("sample.png"),
    negative: Annotated[str, typer.Option(help="what to stay away from")] = "",
    image: Annotated[Path | None, typer.Option(help="picture to start from; with --start-at to enlarge")] = None,
    mask: Annotated[Path | None, typer.Option(help="white where to draw the picture anew")] = None,
    strength: Annotated[float | None, typer.Option(help="of image-to-image: 0 keeps the picture, 1 ignores it")] = None,
    start_at: Annotated[str | None, typer.Option(metavar="STAGE", help="start at this cascade stage")] = None,
    stage: Annotated[str | None, typer.Option(help="stop at this cascade stage")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="pixels of the last stage's images")] = None,
    aspect: Annotated[str | None, typer.Option(metavar="W:H", help="the nearest size of this aspect")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance weight of every stage")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="network evaluations a stage")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, dpmpp_2m, dpmpp_2m_sde or unipc")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[STAGE.]KEY=VALUE", help="any setting of the samplers, see docs/sampling.md"),
    ] = None,
    refuse_overlong: Annotated[
        bool, typer.Option("--refuse-overlong", help="refuse a prompt that the encoder cannot read whole")
    ] = False,
    watermark: Annotated[str | None, typer.Option(metavar="TEXT", help="mark the images invisibly with this")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = "cpu",
) -> None:
    """Draw prompts with a trained cascade; change, fill in or enlarge a picture."""
    from pipeline.sampling import Request, sample_run

    if not prompt and prompts_file is None:
        raise UserError("PROMPT is missing; say what to draw, or name a --prompts-file")
    settings = {"strength": strength, "guidance": guidance, "steps": steps, "sampler": sampler}
    call = {"negative": negative, "start_at": start_at, "stop_at": stage, "best_of": best_of}
    call |= {"overlong": "refuse" if refuse_overlong else "cut", "batch_size": batch_size}
    request = Request(
        prompt or [], out, prompts_file, num, seed, image, mask, size, aspect, settings, assign or [], call, watermark,
        device,
    )  # fmt: skip
    for path in sample_run(folder, request):
        print(path)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="PNG...", help="pictures that `sample` wrote")],
) -> None:
    """Print how pictures were made, a JSON object each: prompt, seed, model, settings."""
    from eval.metadata import read_png

    for path in files:
        print(json.dumps({"file": str(path), **read_png(path)}, ensure_ascii=False))


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write, which must not be there yet")],
    weights: Annotated[str, typer.Option(help="ema: the averages, which sample better; raw: the last step's")] = "ema",
    licence: Annotated[str | None, typer.Option(help="licence of the weights, for the model card")] = None,
    watermark: Annotated[str | None, typer.Option(metavar="TEXT", help="mark all its images invisibly")] = None,
) -> None:
    """Write the trained cascade as a folder that samples without this run: weights, encoder, CLIP, model card."""
    from pipeline.export import export_run

    print(export_run(folder, out, weights, licence, watermark))


@app.command()
def report(
    folder: RunFolder,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the summary for a pull request instead")] = False,
) -> None:
    """Build the report again from the run's artifacts, and print its path."""
    from dataprep import storage
    from pipeline.report.build import MARKDOWN, publish_report
    from pipeline.store import Run

    run = Run(folder)
    path = publish_report(run)
    print(storage.read_bytes(run.path(MARKDOWN)).decode() if markdown else path)


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN_A RUN_B", help="run folders, or RUN@FINGERPRINT of a sample stage"),
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML page to write")] = Path("compare.html"),
    blind: Annotated[Path | None, typer.Option(help="also write this page: a blind test to send to raters")] = None,
    count: Annotated[list[str] | None, typer.Option(metavar="FILE", help="count choices that raters saved")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="pairs of pictures to show")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="of the blind test's order and sides")] = 0,
) -> None:
    """Put two runs side by side on the same prompts and seeds, and say which is better."""
    from pipeline import blind as blind_test
    from pipeline import compare as comparison

    if count:
        print("\n".join(blind_test.summary(blind_test.count(count))))
        return
    if len(runs or []) != 2:
        raise UserError(f"compare: {len(runs or [])} runs given; give RUN_A and RUN_B, or --count FILE")
    a, b = (comparison.load_side(name) for name in runs or [])
    found = comparison.load_pairs(a, b)
    if blind:
        blind.parent.mkdir(parents=True, exist_ok=True)
        blind.write_text(blind_test.blind_page(a, b, found, pairs, seed), encoding="utf-8")
    rows = comparison.measure_pairs(a, b, found)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(comparison.page(a, b, found, rows, pairs), encoding="utf-8")
    print(comparison.verdict(rows))
    print("\n".join(str(path) for path in (out, blind) if path))


@app.command()
def verify(folder: RunFolder) -> None:
    """Hash every output again and name what differs; exit 1 where something does."""
    from pipeline.store import Run
    from pipeline.store import verify as verify_run

    bad = 0
    for stage, files, problems in verify_run(Run(folder)):
        _out().print(
            f"{stage:<14} {files:>5} files  {'[red]' + str(len(problems)) + ' differ' if problems else '[green]ok'}[/]"
        )
        for problem in problems:
            _out().print(f"  {problem}", markup=False)
        bad += len(problems)
    if bad:
        raise StageError(f"{bad} files differ from their manifests; delete their stage's folder and run again")


@app.command()
def trace(
    folder: RunFolder,
    sample: Annotated[str, typer.Argument(metavar="KEY|URL", help="a sample's key, such as 000120034, or its URL")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line, a line a row with that URL")] = False,
) -> None:
    """Show where a sample came from, what was decided about it, and what was trained on it."""
    from pipeline.trace import render
    from pipeline.trace import trace as trace_sample

    for told in trace_sample(folder, sample):
        print(json.dumps(told, ensure_ascii=False)) if as_json else _out().print(render(told))


@app.command()
def forget(
    folder: RunFolder,
    samples: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL|KEY...", help="the samples; none: bring an interrupted forget to its end"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what would be touched; change nothing")] = False,
) -> None:
    """Take samples out of every artifact of a run for good; what was trained on them is listed."""
    from pipeline.forget import forget as forget_samples
    from pipeline.forget import render

    _out().print(render(forget_samples(folder, samples or [], dry_run), dry_run))


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    machines: Annotated[str | None, typer.Option(metavar="FILE", help="YAML table of machines and assumptions")] = None,
    machine: Annotated[str | None, typer.Option(help="the machine of the table to train on; default: all")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="how many of it; default: the fewest in time")] = None,
    data_machine: Annotated[str | None, typer.Option(help="the machine for stages without a GPU")] = None,
    data_nodes: Annotated[int | None, typer.Option(min=1, help="how many of that")] = None,
    days: Annotated[float, typer.Option(min=0.01, help="days that training may take")] = 30.0,
    spot: Annotated[bool, typer.Option("--spot", help="interruptible machines: their prices and failures")] = False,
    measured: Annotated[str | None, typer.Option(metavar="RUN", help="shares and sizes as in this run")] = None,
    urls: Annotated[int | None, typer.Option(min=1, help="rows of the list")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the simulated failures")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="the same as JSON")] = False,
) -> None:
    """Say what a config takes: parameters, memory a GPU, storage, hours and money. Starts nothing."""
    from pipeline.config import load_config
    from pipeline.planner.faults import simulate_plan
    from pipeline.planner.plan import Wanted, make_plan, to_json
    from pipeline.planner.render import render
    from pipeline.planner.table import load_table

    wanted = Wanted(machine, nodes, data_machine, data_nodes, days, spot, measured, urls)
    made = make_plan(load_config(config, overrides or []), load_table(machines), wanted)
    simulated = simulate_plan(made, seed)
    if as_json:
        print(json.dumps(to_json(made) | {"simulation": asdict(simulated) if simulated else None}, indent=2))
        return
    _out().print(render(made, simulated))


@app.command()
def calibrate(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="table to write, for `plan --machines`")] = Path("machines.yaml"),
    name: Annotated[str, typer.Option(help="what the machine is called there")] = "here",
    price: Annotated[float, typer.Option(min=0, help="dollars an hour that it costs")] = 0.0,
    network: Annotated[float, typer.Option(min=0.001, help="its Gbit/s to others and to the internet")] = 1.0,
) -> None:
    """Measure this machine for `plan`: matrix products, an update of each stage, encoders, JPEG, disk."""
    from pipeline.config import load_config
    from pipeline.planner.calibrate import calibrate_machine, write_entry

    measured = calibrate_machine(load_config(config, overrides or []), price, network)
    write_entry(out, name, measured.machine)
    for line in measured.lines:
        print(line)
    print(out)


@app.command()
def submit(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    wait: Annotated[bool, typer.Option(help="follow the log and exit with the job's status")] = True,
) -> None:
    """Run the pipeline as a Ray job on a cluster, or follow the job that is at it."""
    from pipeline.submit import submit_job

    raise typer.Exit(submit_job(config, overrides or [], address, wait))


@app.command()
def logs(
    target: Annotated[str, typer.Argument(metavar="RUN|JOB", help="the run folder, or a job's name")],
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="to the job's end; else what there is by now")] = True,
) -> None:
    """Print the log of a run's newest job, and exit with the job's status."""
    from pipeline.jobs import show_log

    raise typer.Exit(show_log(target, address, follow))


def _out() -> Console:
    # In a pipe a table must not be cut to a guessed width.
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point: turns errors into one line and the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        run_from_own_copy(words)
    verbose = "--verbose" in words
    words = [word for word in words if word != "--verbose"]
    try:
        status = app(args=words or ["--help"], prog_name="imagen-ray", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        _fail(str(error), 2, verbose)
    except typer.TyperException as error:
        _fail(str(getattr(error, "format_message", error.__str__)()), 2, verbose)
    except StageError as error:
        _fail(f"{error}{_resume(words)}", 1, verbose)
    except (KeyboardInterrupt, typer.Abort):
        _fail(f"interrupted; what is finished is kept{_resume(words)}", 130, verbose)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--verbose shows where){_resume(words)}", 1, verbose)


def _resume(words: list[str]) -> str:
    return f". Resume: {shlex.join(['imagen-ray', *words])}" if words[:1] == ["run"] else ""


def _fail(text: str, status: int, verbose: bool) -> NoReturn:
    if verbose:
        traceback.print_exc()
    console.print(Text.assemble(("error: ", "red"), " ".join(text.split())))
    sys.exit(status)
