"""The command line: ``imagen-ray``, the same as ``python -m pipeline``.

Exit status: 0 done; 2 a mistake of the user, in one line; 1 a failure at run time, naming the stage, the log and the
command that resumes. ``--verbose`` adds the traceback.

Modules of commands import what they need inside the command: ``--help`` must not wait for torch.
"""

from __future__ import annotations

import io
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from dataprep.io.errors import UserError
from dataprep.io.progress_bars import disable_progress_bars
from pipeline.cli import compare, data, evaluate, export, info, jobs, plan, run, sample
from pipeline.jobs.job_workdir import rerun_from_copy
from pipeline.runtime.errors import StageError
from pipeline.runtime.process_exit import exit_process

COMMANDS: dict[str, Callable[..., Any]] = {
    "run": run.run_pipeline,
    "status": jobs.show_status,
    "sample": sample.sample_images,
    "evaluate": evaluate.evaluate_images,
    "inspect": sample.inspect_images,
    "export": export.export_model,
    "report": run.build_report,
    "compare": compare.compare_runs,
    "verify": data.verify_run,
    "trace": data.trace_sample,
    "forget": data.forget_samples,
    "plan": plan.plan_costs,
    "calibrate": plan.calibrate_plan,
    "submit": jobs.submit_run,
    "logs": jobs.show_logs,
    "env": info.print_environment,
    "schema": info.print_schema,
}


class _Commands(TyperGroup):
    """Typer ends a command at Ctrl-C without a word; here `_run_command` says that finished work is kept."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Abort from error


app = typer.Typer(name="imagen-ray", cls=_Commands, rich_markup_mode=None)
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


def _print_version(wanted: bool) -> None:
    if wanted:
        from dataprep.io.version import package_version

        print(f"imagen-ray {package_version()}")
        raise typer.Exit


@app.callback()
def read_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="show the traceback of an error; may also follow the command")
    ] = False,
) -> None:
    """From URLs and captions to a trained, evaluated text-to-image cascade.

    Begin with `imagen-ray run configs/demo.yaml`. `imagen-ray COMMAND --help` lists the options of a command.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and raises SystemExit with its status; without ``arguments``, this process's, ends it."""
    if arguments is not None:
        _run_command(list(arguments))
    words = sys.argv[1:]
    rerun_from_copy(words)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path whose name is not UTF-8 is printed as it is
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        _run_command(words)
    except SystemExit as end:
        exit_process(end.code)


def _run_command(words: list[str]) -> NoReturn:
    """Raises SystemExit with the status of a command; turns errors into one line."""
    disable_progress_bars()
    verbose = "--verbose" in words
    words = [word for word in words if word != "--verbose"]
    try:
        status = app(args=words or ["--help"], prog_name="imagen-ray", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        _fail(str(error), 2, verbose)
    except typer.TyperException as error:
        _fail(_describe_usage_error(error), 2, verbose)
    except StageError as error:
        _fail(f"{error}{_resume_hint(words)}", 1, verbose)
    except (KeyboardInterrupt, typer.Abort):
        _fail(f"interrupted; finished work is kept{_resume_hint(words)}", 130, verbose)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--verbose shows where){_resume_hint(words)}", 1, verbose)


def _describe_usage_error(error: typer.TyperException) -> str:
    """Returns what typer says is wrong with the words of a command, and where its options are listed."""
    text, context = str(getattr(error, "format_message", error.__str__)()), getattr(error, "ctx", None)
    return f"{text.rstrip('.')} (see `{context.command_path} --help`)" if context else text


def _resume_hint(words: list[str]) -> str:
    return f". Resume: {shlex.join(['imagen-ray', *words])}" if words[:1] == ["run"] else ""


def _fail(text: str, status: int, verbose: bool) -> NoReturn:
    from rich.text import Text

    from pipeline.terminal import console

    if verbose:
        traceback.print_exc()
    console.print(Text.assemble(("error: ", "red"), " ".join(text.split())))
    sys.exit(status)
