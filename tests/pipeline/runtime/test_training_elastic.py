"""Where the ranks of a training land on clusters with pretended GPUs, and what happens when a machine is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataprep.io.storage import read_json_lines
from tests.helpers.elastic_run import SETTINGS, ToyData, ToyTask, config, train
from tests.helpers.paths import ROOT
from tests.helpers.placed_run import read_groups

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]
STEPS = 60


def run_driver(module: str, *arguments: object) -> dict[str, Any]:
    """Runs a driver in a process of its own; returns what it prints last."""
    words = [sys.executable, "-m", f"tests.helpers.{module}", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("gpus", [1, 4])
def test_ranks_land_on_the_gpus_and_more_than_there_are_is_an_error(tmp_path: Path, gpus: int) -> None:
    """By default every GPU gets a rank, and no CPU does; with `cluster.ranks=8` the command ends with status 2."""
    found = run_driver("placed_run", tmp_path, gpus)
    (group,) = read_groups(tmp_path)
    print(f"cluster.ranks=8: status {found['status']}: {found['line']}")
    visible = ",".join(str(gpu) for gpu in range(gpus))
    assert [place["rank"] for place in group] == list(range(gpus))
    assert [place["LOCAL_RANK"] for place in group] == [str(rank) for rank in range(gpus)]
    assert {(place["node"], place["CUDA_VISIBLE_DEVICES"]) for place in group} == {(0, visible)}
    assert (found["step"], found["ranks"], found["status"]) == (3, gpus, 2)
    assert f"cluster.ranks=8: each rank takes 1 GPU, and the cluster has {gpus}, enough for {gpus}" in found["line"]
    assert "or add GPUs" in found["line"] and "set cluster.stages.train.num_gpus=0" in found["line"]


def test_a_group_shrinks_and_grows_with_its_cluster_and_its_losses_go_on(tmp_path: Path) -> None:
    assert run_driver("elastic_run", tmp_path, STEPS) == {"step": STEPS, "gpus": 1.0}
    groups = read_groups(tmp_path)
    nodes = [[place["node"] for place in group] for group in groups]
    assert [len(set(group)) for group in nodes] == [len(group) for group in nodes] == [4, 2, 4]  # a rank per node
    (gone,) = (place["node"] for place in groups[0] if place["id"] == (tmp_path / "lost").read_text())
    print(f"lost after step 8: node {gone}")
    assert set(nodes[1]) < set(nodes[0]) - {gone}
    assert set(nodes[2]) - set(nodes[0]) and gone not in nodes[2]  # with the machine that joined
    assert all(place["CUDA_VISIBLE_DEVICES"] == "0" for group in groups for place in group)
    alone = tmp_path / "alone"
    train(ToyTask(), config(steps=STEPS, **SETTINGS), ToyData(), str(alone), 0, ToyData(seed=5))
    ours, theirs = (
        {row["step"]: row["loss"] for row in read_json_lines(f"{folder}/log.jsonl")}
        for folder in (tmp_path / "run", alone)
    )
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    assert [ours[step] for step in sorted(ours)] == pytest.approx([theirs[step] for step in sorted(theirs)], rel=1e-4)
