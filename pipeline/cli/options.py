"""Arguments that several commands share, and how commands print."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Options = TypeVar("Options")


def complete_run(incomplete: str) -> list[str]:
    """Returns the folders that begin with ``incomplete``: run folders if there are any, else those to look into."""
    parent = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    try:
        folders = [path for path in parent.iterdir() if path.is_dir() and str(path).startswith(incomplete)]
    except OSError:
        return []
    return sorted(str(path) for path in folders if (path / "run.json").exists()) or sorted(f"{p}/" for p in folders)


def complete_stage(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns the stages that begin with ``incomplete``, read from the run of the config that is being typed."""
    import yaml

    try:
        tree = yaml.safe_load(Path(ctx.params["config"]).read_text(encoding="utf-8"))
        record = json.loads((Path(tree["run"]) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []
    return [stage for stage in record.get("stages", {}) if stage.startswith(incomplete)]


ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML config, such as configs/demo.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="values that override the config's")
]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="run folder (`run` in the config)", autocompletion=complete_run)
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="run folder, a folder written by `export`, or a stage in diffusers' layout (folder or hf://owner/name)",
        autocompletion=complete_run,
    ),
]
Then = Annotated[
    list[str] | None,
    typer.Option(metavar="FOLDER", help="the super-resolution stage after MODEL, in diffusers' layout; repeatable"),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="dashboard of the cluster, such as http://head:8265; default: RAY_API_SERVER_ADDRESS, or this machine's"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Returns a decorator that makes a command of a function whose only parameter is the dataclass ``options``.

    The fields are the command's arguments and options, annotated as the parameters of a command are.
    """

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            function(options(**values))

        command.__doc__ = function.__doc__
        command.__signature__ = inspect.signature(options, eval_str=True)  # type: ignore[attr-defined]
        return command

    return decorate


def print_text(*renderables: Any, markup: bool = True) -> None:
    """Prints to stdout with rich."""
    from rich.console import Console

    # In a pipe a table must not be cut to a guessed width.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
    console.print(*renderables, markup=markup)


def print_json(value: Any) -> None:
    """Prints one JSON document to stdout; NaN and infinity, which JSON does not have, become null."""
    print(json.dumps(_to_json(value), ensure_ascii=False, indent=2))


def _to_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value
