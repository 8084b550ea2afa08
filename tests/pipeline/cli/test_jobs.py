"""``status``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.helpers.small_runs import write_small_run


def test_status_as_json_is_one_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["status", str(write_small_run(tmp_path / "run")), "--json"])
    assert caught.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"] == "finished" and "job" not in printed
    states = {stage["stage"]: (stage["state"], stage["shards_done"], stage["step"]) for stage in printed["stages"]}
    assert states == {
        "listing": ("done", None, None),
        "download": ("pending", 2, None),
        "train.base": ("pending", None, 40),
        "train.sr64": ("pending", None, None),
    }
