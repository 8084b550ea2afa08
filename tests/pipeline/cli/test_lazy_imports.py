"""Commands that answer at once import nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.cli.main import COMMANDS
from tests.helpers.paths import ROOT

HEAVY = {"torch", "ray", "pyarrow", "numpy", "pydantic", "transformers", "plotly", "open_clip", "fsspec", "scipy"}
PROBE = """
import sys
from pipeline.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def run_command(*words: str) -> set[str]:
    """Runs the command in a process of its own and returns the top-level modules that it loaded."""
    done = subprocess.run([sys.executable, "-c", PROBE, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("loaded:"), done.stderr
    return set(line.split()[1:])


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_load_nothing_heavy(word: str) -> None:
    loaded = run_command(word)
    assert "typer" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_only_what_typer_loads(command: str) -> None:
    # Typer checks the values of options with pydantic.
    assert run_command(command, "--help") & HEAVY <= {"pydantic"}


def test_a_missing_model_is_told_before_anything_heavy_is_loaded() -> None:
    assert run_command("sample", "no-such-folder", "a cat") & {"torch", "transformers", "pyarrow", "ray"} == set()
