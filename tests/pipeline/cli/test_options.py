"""What the shell completes, and JSON that every parser takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.cli.options import complete_run, complete_stage, print_json


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


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), float("inf"), 0.5], "path": Path("x.png"), "b": (1, True, None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 0.5], "path": "x.png", "b": [1, True, None]}
