"""`imagen-ray calibrate`: measures something, and writes what `plan` reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.planner import calibrate
from pipeline.planner.catalog import load_table
from pipeline.planner.plan import PlanRequest, make_plan
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def test_an_entry_is_measured_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECONDS": 0.01, "MATRIX_SIDE": 128, "DISK_MB": 2}.items():
        monkeypatch.setattr(calibrate, name, value)
    config = load_config(SMOKE)
    made = calibrate.calibrate_machine(config, 1.5, 10.0)
    assert len(made.lines) == 5
    machine = made.machine
    assert (machine.price, machine.network_gbit, machine.internet_gbit) == (1.5, 10.0, 10.0)
    assert min(machine.tflops, machine.mfu, machine.encode_mfu, machine.images_per_core or 0) > 0
    path = tmp_path / "tables" / "machines.yaml"
    calibrate.write_entry(path, "here", machine)
    calibrate.write_entry(path, "again", machine)
    table = load_table(str(path))
    assert table.machines == {"here": machine, "again": machine}
    plan = make_plan(config, table, PlanRequest(machine="here"))
    assert {cost.machine for cost in plan.costs} == {"here"}


def test_a_base_too_large_is_stood_in_for() -> None:
    config = load_config(str(Path(SMOKE).with_name("imagen.yaml")))
    model, what = calibrate._choose_base(config, 16.0)
    assert model.config.model == calibrate.STAND_IN
    assert "does not fit" in what


def test_a_file_that_is_no_table_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.yaml"
    path.write_text("machines: 3\n")
    with pytest.raises(UserError, match="not a catalog of machines"):
        calibrate.write_entry(path, "here", load_table().machines["1xL4"])
    assert path.read_text() == "machines: 3\n"
