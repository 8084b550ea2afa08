"""``compare``: its pages and its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main
from pipeline.compare import blind_test, measures, page
from pipeline.compare import runs as compared_runs


@dataclass
class Measure:
    name: str
    a: float
    b: float


@dataclass
class Side:
    name: str


def test_json_has_the_verdict_and_every_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stand_ins: list[tuple[Any, str, Any]] = [
        (compared_runs, "load_compared_run", Side),
        (compared_runs, "load_pairs", lambda a, b: ["pair"] * 3),
        (compared_runs, "list_differences", lambda a, b: [{"key": "seed", "a": "0", "b": "1"}]),
        (measures, "measure_pairs", lambda a, b, pairs: [Measure("CLIP score", 0.25, float("nan"))]),
        (measures, "state_verdict", lambda rows: "The two cannot be told apart."),
        (page, "render_comparison", lambda *_: "<html>"),
    ]
    for module, name, function in stand_ins:
        monkeypatch.setattr(module, name, function)
    out = tmp_path / "pages" / "compare.html"
    with pytest.raises(SystemExit) as caught:
        main(["compare", "one", "two", "--out", str(out), "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out) == {
        "a": "one",
        "b": "two",
        "pairs": 3,
        "verdict": "The two cannot be told apart.",
        "measures": [{"name": "CLIP score", "a": 0.25, "b": None}],
        "differences": [{"key": "seed", "a": "0", "b": "1"}],
        "pages": [str(out)],
    }
    assert out.read_text() == "<html>"


def test_counted_choices_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(blind_test, "count_choices", lambda files: {"raters": len(files)})
    with pytest.raises(SystemExit) as caught:
        main(["compare", "--count", "a.json", "--count", "b.json", "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"raters": 2}
