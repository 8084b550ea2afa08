"""The machine catalog: users' files and their mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dataprep.io.errors import UserError
from pipeline.planner.catalog import SHIPPED, Assumptions, load_table
from tests.helpers.plans import SMOKE, fail_command

WRONG_TABLES = {
    "no such file": (None, ["no such file", "calibrate"]),
    "not YAML": ("machines: [", ["not valid YAML"]),
    "a list": ("- 1", ["mapping"]),
    "an unknown section": ("machine: {}", ["machine", "machines and assumptions"]),
    "an unknown key": ("machines: {a: {gpu: 1}}", ["machines.a"]),
    "a wrong type": ("assumptions: {urls: many}", ["assumptions.urls", "many"]),
    "out of range": ("assumptions: {keep_share: 2.0}", ["keep_share", "2.0"]),
    "machines that are none": ("machines: {a: 3}", ["machines.a"]),
}


@pytest.mark.parametrize("what", WRONG_TABLES)
def test_wrong_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    content, words = WRONG_TABLES[what]
    path = tmp_path / "machines.yaml"
    if content is not None:
        path.write_text(content)
    line = fail_command(capsys, "plan", SMOKE, "--machines", str(path))
    assert all(word in line for word in words), line


def test_user_table_replaces_machines_and_some_assumptions(tmp_path: Path) -> None:
    entry = yaml.safe_load(SHIPPED.read_text())["machines"]["1xL4"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"machines": {"mine": entry}, "assumptions": {"keep_share": 0.25}}))
    loaded = load_table(str(path))
    assert list(loaded.machines) == ["mine"]
    assert loaded.assumptions == Assumptions(keep_share=0.25)
    with pytest.raises(UserError, match="valid keys"):
        path.write_text(yaml.safe_dump({"assumptions": {"keep": 0.25}}))
        load_table(str(path))
