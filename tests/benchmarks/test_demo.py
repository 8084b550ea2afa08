"""The demo's claims over seeds, with made-up rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import demo
from benchmarks.demo import EXAMPLE, judge_example, make_claims
from dataprep.synthetic.grammar import parse_caption
from dataprep.synthetic.renderer import draw_scene


def make_row(seen: float, heldout: float, chinese: float, right: int) -> dict[str, Any]:
    return {
        "composition": {"seen": {"all": seen}, "heldout": {"all": heldout}},
        "languages": {"en": {"all": 0.9}, "zh": {"all": chinese}},
        "example_right": right,
        "flops": {"encoder": 1e12, "train.base": 2e13},
        "minutes": 9.0,
    }


def test_claims_are_on_mean_and_worst_seed() -> None:
    claims = {entry["claim"]: entry for entry in make_claims([make_row(1.0, 0.9, 0.9, 4), make_row(0.9, 0.8, 0.7, 3)])}
    values = [(entry["value"], entry["met"]) for entry in claims.values()]
    expected = [(0.95, True), (0.9, False), (0.85, False), (0.8, False), (0.1, False), (3, False)]
    assert values == [*expected, (2.1e13, True), (9.0, True)]


def test_the_example_counts_the_images_that_show_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = parse_caption(EXAMPLE), parse_caption("two small red circles right of a blue square")
    assert right is not None and wrong is not None
    images = [draw_scene(claim, np.random.default_rng(seed), 64) for seed, claim in enumerate([right, wrong, right])]

    class Drawn:
        def sample(self, prompts: list[str], options: Any) -> Any:
            assert prompts == [EXAMPLE] and (options.num, options.seed) == (4, 1)
            return type("Samples", (), {"images": images})

    monkeypatch.setattr(demo, "load_cascade", lambda folder: Drawn())
    assert judge_example("runs/demo") == 2
