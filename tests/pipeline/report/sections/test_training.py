"""Grids sampled during training."""

from __future__ import annotations

import numpy as np

from pipeline.report.sections.training import load_grids
from pipeline.store.run import Run
from tests.helpers.data_urls import decode_data_url


def test_grids_of_a_stage_by_step(run: Run) -> None:
    artifact = run.artifacts()["train.base"]
    shown = load_grids("train.base", artifact)
    assert shown is not None
    assert [strip["step"] for strip in shown["strips"]] == [3, 6, 9]
    assert (shown["width"], shown["height"]) == (16, 4)
    values = [np.asarray(decode_data_url(strip["src"])).mean() for strip in shown["strips"]]
    assert values == [85, 170, 255]
    assert np.asarray(decode_data_url(shown["real"])).mean() == 255
    assert load_grids("clip", run.artifacts()["clip"]) is None
