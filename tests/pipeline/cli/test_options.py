"""What the shell completes, options as a dataclass, and JSON that every parser takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import pytest
import typer

from pipeline.cli.options import complete_run, complete_stage, print_json, takes


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"stages": {"listing": {}, "train.base": {}, "train.sr64": {}}}))
    return folder


def test_run_folders_are_completed(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "demo")
    (tmp_path / "runs" / "data").mkdir()
    assert complete_run(f"{tmp_path}/ru") == [f"{tmp_path}/runs/"]
    assert complete_run(f"{tmp_path}/runs/d") == [f"{tmp_path}/runs/demo"]
    assert complete_run(f"{tmp_path}/runs/da") == [f"{tmp_path}/runs/data/"]
    assert complete_run(f"{tmp_path}/none/x") == []


def test_stages_are_completed_from_the_run_of_the_config(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(f"run: {tmp_path}/run\n")

    def complete(config: Path, text: str) -> list[str]:
        return complete_stage(cast(Any, SimpleNamespace(params={"config": str(config)})), text)

    assert complete(tmp_path / "config.yaml", "train.") == ["train.base", "train.sr64"]
    assert complete(tmp_path / "missing.yaml", "train.") == []


@dataclass(frozen=True, kw_only=True)
class Arguments:
    name: Annotated[str, typer.Argument(help="whom to greet")]
    times: Annotated[int, typer.Option(min=1, help="how often")] = 2


def test_a_dataclass_is_the_options_of_a_command() -> None:
    seen: list[Arguments] = []

    @takes(Arguments)
    def greet(given: Arguments) -> None:
        """Greet somebody."""
        seen.append(given)

    app = typer.Typer()
    app.command()(greet)
    app(["Ann"], standalone_mode=False)
    app(["Ann", "--times", "3"], standalone_mode=False)
    assert seen == [Arguments(name="Ann"), Arguments(name="Ann", times=3)]
    assert greet.__doc__ == "Greet somebody."
    with pytest.raises(typer.BadParameter, match="greater than or equal to 1"):
        app(["Ann", "--times", "0"], standalone_mode=False)


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), float("inf"), 0.5], "path": Path("x.png"), "b": (1, True, None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 0.5], "path": "x.png", "b": [1, True, None]}
