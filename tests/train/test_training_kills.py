"""SIGKILL at every point of an update and of a save, to either rank and the driver: no step is lost or duplicated."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.paths import ROOT
from tests.helpers.toys import ToyData, rows

POINTS = ("data", "forward", "backward", "optimizer", "in save", "before marker", "after marker")
EVERY = 4  # steps between checkpoints


def run_killed(folder: Path, plan: list[list[Any]], steps: int, **changes: Any) -> None:
    changes = {"steps": steps, "checkpoint_every": EVERY, "zero_stage": 2} | changes
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [
        sys.executable,
        "-m",
        "tests.helpers.kill_group",
        str(folder),
        json.dumps(changes),
        json.dumps(plan),
    ]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def check_run(folder: Path, plan: list[list[Any]], steps: int, most: int) -> int:
    """Checks that the killed run equals the whole one, with the same samples per step; returns the repeated steps."""
    killed, whole = folder / "killed", folder / "whole"
    assert len(list((killed / "kills").iterdir())) == len(plan)
    assert rows(killed / "run") == rows(whole / "run")
    one, other = (load_file(folder / "run/export/weights.safetensors") for folder in (killed, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    data, repeated = ToyData(), 0
    for rank in (0, 1):
        seen = [json.loads(line) for line in (killed / f"steps-{rank}.jsonl").read_text().splitlines()]
        assert {step for step, _ in seen} == set(range(steps))
        assert all(indices == data.positions(step, rank, 2).tolist() for step, indices in seen)
        for (before, _), (after, _) in itertools.pairwise(seen):
            assert after <= before + 1 and before - after + 1 <= most, (before, after)
            repeated += max(0, before - after + 1)
    return repeated // 2


def test_a_kill_at_every_point(tmp_path: Path) -> None:
    victims = ("rank0", "rank1", "driver")
    plan = [[point, victims[at % 3], 3 * at + 2] for at, point in enumerate(POINTS)]
    run_killed(tmp_path, plan, 28, overlap_save=0)
    assert check_run(tmp_path, plan, 28, EVERY) > 0


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 2, 100])
def test_every_victim_at_every_point(tmp_path: Path, overlap: int) -> None:
    """21 kills in one run. With overlap, steps during an unfinished save may be repeated too."""
    victims = ("rank0", "driver", "rank1")
    plan = [[point, victim, 0] for victim in victims for point in POINTS]
    plan = [[point, victim, 3 * at + 2] for at, (point, victim, _) in enumerate(plan)]
    run_killed(tmp_path, plan, 72, overlap_save=overlap)
    most = EVERY + min(overlap, EVERY)  # the next save waits for the previous one
    repeated = check_run(tmp_path, plan, 72, most)
    print(f"overlap_save={overlap}: {len(plan)} kills, repeated steps: {repeated} of 72")
    assert repeated > 0
