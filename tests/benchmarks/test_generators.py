"""The claims on other generators, with made-up rows."""

from __future__ import annotations

from typing import Any

from benchmarks.generators import compare, replace_rows


def make_row(config: str, seed: int, seen: float, heldout: float, minutes: float, busy: bool = False) -> dict[str, Any]:
    composition = {"seen": {"all": seen}, "heldout": {"all": heldout}}
    return {"config": config, "busy": busy, "seed": seed, "composition": composition, "minutes": minutes}


def test_each_config_is_compared_over_the_seeds_that_both_have() -> None:
    rows = [make_row("demo", 0, 0.9, 0.8, 12), make_row("demo", 1, 1.0, 0.9, 12)]
    rows += [make_row("dit", 0, 0.8, 0.9, 20), make_row("dit", 1, 1.0, 0.9, 26), make_row("dit", 2, 0.0, 0.0, 90)]
    rows += [make_row("dalle2", 0, 0.88, 0.7, 25), make_row("bert_vq", 2, 0.9, 0.9, 20)]
    found = [(entry["claim"], entry["value"], entry["met"]) for entry in compare(rows)]
    assert found == [
        ("dit: accuracy over the demo's, seen, mean of 2 seeds", -0.05, True),
        ("dit: accuracy over the demo's, heldout, mean of 2 seeds", 0.05, True),
        ("dit: the whole command, longest of 2", 26, False),
        ("dalle2: accuracy over the demo's, seen, mean of 1 seed", -0.02, True),
        ("dalle2: accuracy over the demo's, heldout, mean of 1 seed", -0.1, False),
        ("dalle2: the whole command, longest of 1", 25, True),
    ]


def test_the_time_of_a_run_beside_other_work_is_not_judged() -> None:
    rows = [make_row("demo", 0, 0.9, 0.8, 12), make_row("demo", 1, 0.9, 0.8, 12)]
    rows += [make_row("dit", 0, 0.9, 0.9, 20), make_row("dit", 1, 0.9, 0.9, 70, busy=True)]
    times = [(entry["claim"], entry["value"]) for entry in compare(rows) if entry["unit"] == "minutes"]
    assert times == [("dit: the whole command, longest of 1", 20)]
    assert not [entry for entry in compare([rows[0], rows[1], rows[3]]) if entry["unit"] == "minutes"]


def test_rows_of_other_runs_are_kept() -> None:
    kept = [{"config": "dalle2", "seed": 0, "minutes": 1.0}, {"config": "demo", "seed": 1, "minutes": 2.0}]
    rows = [{"config": "demo", "seed": 0, "minutes": 3.0}, {"config": "dalle2", "seed": 0, "minutes": 4.0}]
    found = [(row["config"], row["seed"], row["minutes"]) for row in replace_rows(kept, rows)]
    assert found == [("demo", 0, 3.0), ("demo", 1, 2.0), ("dalle2", 0, 4.0)]
