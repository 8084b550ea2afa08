"""``run``: the dry run, and a driver under supervision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.execution import supervisor
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def test_dry_run_prints_the_stages_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", SMOKE, f"run={tmp_path}/run", "--dry-run", "--until", "select", "--retries", "2"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    stages = ["listing", "download", "annotate", "encoder", "clip", "score", "select"]
    assert [line.split()[0] for line in lines[1:]] == stages
    assert all("would run" in line and "never run" in line for line in lines[1:])
    assert not (tmp_path / "run").exists()


def test_with_retries_the_driver_is_a_child_with_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def supervise(words: list[str], retries: int) -> int:
        calls.append((words, retries))
        return 3

    monkeypatch.setattr(supervisor, "supervise_driver", supervise)
    with pytest.raises(SystemExit) as caught:
        main(["run", SMOKE, "seed=1", "--retries", "2", "--until", "pack", "--keep", "score", "--keep", "clip"])
    assert caught.value.code == 3
    words = ["run", SMOKE, "seed=1", "--until", "pack", "--keep", "score", "--keep", "clip"]
    assert calls == [(words, 2)]
