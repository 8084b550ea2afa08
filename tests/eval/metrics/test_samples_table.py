"""The table of samples: written, read back by role, with and without images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.metrics.samples_table import EVALUATE, SHOW, read_samples, write_samples
from eval.sampling.prompts import EvalPrompt, scene_prompts
from tests.helpers.judged import SIZE, make_samples


def test_round_trip_by_role(tmp_path: Path) -> None:
    (item,) = scene_prompts(1, 0)[:1]
    judged = make_samples(item, 1.0, 2) + make_samples(EvalPrompt("a dog", "user", "en", None), 1.0, 2)
    shown = [replace(sample, role=SHOW) for sample in judged[:1]]
    path = str(tmp_path / "samples.parquet")
    assert write_samples([*shown, *judged], path) == 5
    expected = [replace(sample, clip_score=float(np.float32(sample.clip_score))) for sample in judged]
    assert list(read_samples([path], EVALUATE, images=True)) == expected
    assert len(list(read_samples([path], SHOW))) == 1
    without = list(read_samples([path]))
    assert len(without) == 5 and all(sample.png is None for sample in without)
    assert expected[0].pixels().shape == (SIZE, SIZE, 3)
    with pytest.raises(ValueError, match="was read without its image"):
        without[0].pixels()


def test_wrong_attributes() -> None:
    (sample,) = make_samples(scene_prompts(1, 0)[0], 1.0, 1)
    assert replace(sample, checks={"count": True, "shape": False, "all": False}).wrong == ["shape"]
    assert replace(sample, checks=None).wrong == []
