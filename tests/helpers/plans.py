"""Plans of the smoke config, and commands that fail."""

from __future__ import annotations

import pytest

from pipeline.cli.main import main
from pipeline.planner.catalog import Assumptions, MachineCatalog, load_table
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def pick_machines(*names: str, **assumptions: float) -> MachineCatalog:
    """The default catalog with these machines alone."""
    shipped = load_table()
    machines = {name: shipped.machines[name] for name in names}
    return MachineCatalog(machines=machines, assumptions=Assumptions(**assumptions))  # type: ignore[arg-type]


def fail_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail, and returns its one line of error."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert (caught.value.code, len(lines)) == (2, 1), printed.err
    return lines[0]
