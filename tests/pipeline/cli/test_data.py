"""``verify``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.helpers.small_runs import write_small_run


def verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    """Returns the exit status, stdout and stderr of ``verify``."""
    with pytest.raises(SystemExit) as caught:
        main(["verify", *words])
    printed = capsys.readouterr()
    return caught.value.code, printed.out, printed.err


def test_whole_files_pass(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(write_small_run(tmp_path / "run"))
    status, out, _ = verify(capsys, run)
    assert status == 0 and out.split() == ["listing", "1", "file", "ok"]
    status, out, _ = verify(capsys, run, "--json")
    assert status == 0
    assert json.loads(out) == {"run": run, "ok": True, "stages": [{"stage": "listing", "files": 1, "problems": []}]}


def test_a_changed_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run")
    changed = run / "stages" / "listing" / "listing-1" / "00000.parquet"
    changed.write_bytes(b"listet")
    status, out, err = verify(capsys, str(run))
    assert status == 1 and "1 differ" in out and str(changed) in out
    assert "1 file differs from its manifest" in err
    status, out, _ = verify(capsys, str(run), "--json")
    found = json.loads(out)
    assert status == 1 and found["ok"] is False
    assert found["stages"][0]["problems"][0].startswith(f"{changed}: differs")


def test_rows_that_do_not_add_up_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run")
    path = run / "stages" / "listing" / "listing-1" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"counters": {"rows": 4, "usable": 4}}))
    status, out, err = verify(capsys, str(run))
    assert status == 1 and "rows do not add up" in out and "rows=4, but its tables have 3 rows" in out
    assert "1 sum of rows is wrong" in err
    status, out, _ = verify(capsys, str(run), "--json")
    assert json.loads(out)["stages"][0]["problems"] == ["rows=4, but its tables have 3 rows"]
