"""A training whose cluster loses a machine in the middle and gets it back; GPUs are pretended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataprep.io.storage import read_json_lines
from tests.helpers.elastic_run import SETTINGS, ToyData, ToyTask, config, train
from tests.helpers.paths import ROOT

STEPS = 60


@pytest.mark.slow
def test_a_group_shrinks_and_grows_with_its_cluster_and_its_losses_go_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.helpers.elastic_run", str(tmp_path), str(STEPS)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"step": STEPS, "gpus": 1.0, "nodes": [4, 2, 4]}
    assert [row["ranks"] for row in read_json_lines(f"{tmp_path}/groups.jsonl")] == [4, 2, 4]
    alone = tmp_path / "alone"
    train(ToyTask(), config(steps=STEPS, **SETTINGS), ToyData(), str(alone), 0, ToyData(seed=5))
    ours, theirs = (
        {row["step"]: row["loss"] for row in read_json_lines(f"{folder}/log.jsonl")}
        for folder in (tmp_path / "run", alone)
    )
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    assert [ours[step] for step in sorted(ours)] == pytest.approx([theirs[step] for step in sorted(theirs)], rel=1e-4)
