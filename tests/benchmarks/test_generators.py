"""The claims on other generators, with made-up rows."""

from __future__ import annotations

from typing import Any

from benchmarks.generators import compare


def make_row(config: str, seed: int, seen: float, heldout: float, minutes: float) -> dict[str, Any]:
    composition = {"seen": {"all": seen}, "heldout": {"all": heldout}}
    return {"config": config, "seed": seed, "composition": composition, "minutes": minutes}


def test_each_config_is_compared_over_the_seeds_that_both_have() -> None:
    rows = [make_row("demo", 0, 0.9, 0.8, 12), make_row("demo", 1, 1.0, 0.9, 12)]
    rows += [make_row("dit", 0, 0.8, 0.9, 20), make_row("dit", 1, 1.0, 0.9, 26), make_row("dit", 2, 0.0, 0.0, 90)]
    rows += [make_row("dalle2", 0, 0.88, 0.7, 25), make_row("bert_vq", 2, 0.9, 0.9, 20)]
    found = [(entry["claim"], entry["value"], entry["met"]) for entry in compare(rows)]
    assert found == [
        ("dit: accuracy over the demo's, seen, mean of 2 seeds", -0.05, True),
        ("dit: accuracy over the demo's, heldout, mean of 2 seeds", 0.05, True),
        ("dit: the whole command, longest", 26, False),
        ("dalle2: accuracy over the demo's, seen, mean of 1 seed", -0.02, True),
        ("dalle2: accuracy over the demo's, heldout, mean of 1 seed", -0.1, False),
        ("dalle2: the whole command, longest", 25, True),
    ]
