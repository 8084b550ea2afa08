"""``env``, ``schema`` and ``--version``."""

from __future__ import annotations

import json
import tomllib

import pytest

from pipeline.cli.environment import collect_environment, format_environment
from pipeline.cli.main import main
from tests.helpers.paths import ROOT


def printed_by(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Runs the command, which must succeed, and returns what it printed to stdout."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    return printed.out


def test_the_version_is_that_of_pyproject(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert printed_by(capsys, "--version") == f"imagen-ray {version}\n"


def test_the_environment_names_versions_devices_and_ray(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed_by(capsys, "env", "--json", "--address", "http://127.0.0.1:1"))
    assert found["libraries"]["typer"] and found["cpu"]["cores"] >= 1
    assert found["memory"]["total"] > found["memory"]["available"] > 1 << 20
    assert found["ray"]["version"] is None and "does not answer" in found["ray"]["dashboard"]
    text = printed_by(capsys, "env", "--address", "http://127.0.0.1:1")
    for word in ("imagen-ray", "torch build", "cpu model", "GB", "http://127.0.0.1:1"):
        assert word in text


def test_every_section_of_the_environment_is_printed() -> None:
    found = collect_environment("http://127.0.0.1:1")
    lines = format_environment(found).splitlines()
    assert len(lines) == sum(len(value) if isinstance(value, dict) else 1 for value in found.values())


def test_the_schema_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert "properties" in json.loads(printed_by(capsys, "schema"))
