"""The runs of a comparison: earlier states, pairs, differences, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.prompts import EvalPrompt
from pipeline.compare.runs import list_differences, load_compared_run, load_pairs
from tests.helpers.compared import load_both, run_compare
from tests.helpers.judged import make_run


def test_differences_are_of_the_stages_behind_the_samples(runs: tuple[Path, Path]) -> None:
    a, b = load_both(runs)
    assert set(a.artifacts) == {"sample", "train.base", "clip", "pack"}
    rows = {row["key"]: row for row in list_differences(a, b)}
    assert rows["sample.stages.base.guidance"] == {"key": "sample.stages.base.guidance", "a": "1.0", "b": "4.0"}
    assert "code of sample" in rows
    assert len(rows) == 2


def test_earlier_state_of_a_run(runs: tuple[Path, Path]) -> None:
    found = load_compared_run(f"{runs[0]}@{600:020x}")
    assert found.artifacts["sample"].folder == load_compared_run(str(runs[0])).artifacts["sample"].folder
    with pytest.raises(UserError, match=r"0 finished sample stages have a fingerprint starting with abc; found: 0000"):
        load_compared_run(f"{runs[0]}@abc")


def test_user_mistakes(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compare(str(runs[0])) == 2
    assert "1 runs given; give RUN_A and RUN_B" in capsys.readouterr().err
    assert run_compare(str(runs[0]), str(tmp_path)) == 2
    assert "not a run (run.json is missing)" in capsys.readouterr().err
    make_run(tmp_path / "c", 1.0, count=0, more=[EvalPrompt("another", "user", "en", None)])
    with pytest.raises(UserError, match="no evaluation prompt with the same text and seed"):
        load_pairs(load_compared_run(str(runs[0])), load_compared_run(str(tmp_path / "c")))
    storage.write_json(str(tmp_path / "d" / "run.json"), {"stages": {}})
    with pytest.raises(UserError, match="stage sample is not finished"):
        load_compared_run(str(tmp_path / "d"))
