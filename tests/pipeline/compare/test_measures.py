"""Which of two runs is better."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dataprep.io import storage
from pipeline.compare.measures import ComparisonRow, measure_pairs, state_verdict
from pipeline.compare.runs import list_differences, load_compared_run, load_pairs
from tests.helpers.compared import load_both


def test_better_run_is_named_and_a_run_is_no_better_than_itself(runs: tuple[Path, Path]) -> None:
    a, b = load_both(runs)
    pairs = load_pairs(a, b)
    assert len(pairs) == 41
    rows = {row.name: row for row in measure_pairs(a, b, pairs)}
    best = rows["all attributes correct"]
    assert best.verdict == "B is better"
    assert best.difference["low"] > 0
    assert (best.n, best.percent) == (40, True)  # the hostile prompt has no claim
    assert rows["CLIP score by the CLIP of both"].verdict == "B is better"
    (fd,) = [row for name, row in rows.items() if name.startswith("FD to 60 validation images")]
    assert not fd.higher_is_better
    text = state_verdict(list(rows.values()))
    assert re.match(r"Of \d+ measures B is better on \d+: all attributes correct \d\d\.\d% \(A\)", text)
    mixed = state_verdict(
        [best, ComparisonRow("FD", 1, 2, {"value": 1, "low": 0.5, "high": 1.5}, 9, higher_is_better=False)]
    )
    assert mixed.startswith("Neither is better throughout. Of 2 measures B is better on 1: all")
    assert "A is better on 1: FD 1.0000 (A) against 2.0000 (B)" in mixed
    turned = {row.name: row for row in measure_pairs(b, a, load_pairs(b, a))}
    assert turned["all attributes correct"].verdict == "A is better"
    assert turned["all attributes correct"].difference["value"] == pytest.approx(-best.difference["value"])

    same = measure_pairs(a, a, load_pairs(a, a))
    assert {row.verdict for row in same} == {"inconclusive"}
    assert state_verdict(same).startswith("Inconclusive")
    assert list_differences(a, a) == []


def test_runs_with_different_clips_are_scored_by_both(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, _ = load_both(runs)
    shutil.copytree(runs[1], tmp_path / "b")
    weights = next((tmp_path / "b" / "stages" / "clip").iterdir())
    manifest = storage.read_json(str(weights / "manifest.json"))
    manifest["outputs"][0]["sha256"] = "0" * 64
    storage.write_json(str(weights / "manifest.json"), manifest)
    b = load_compared_run(str(tmp_path / "b"))
    names = [row.name for row in measure_pairs(a, b, load_pairs(a, b))]
    assert [name for name in names if name.startswith("CLIP")] == [
        "CLIP score by the CLIP of A",
        "CLIP score by the CLIP of B",
    ]
