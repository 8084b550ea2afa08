"""Runs on Ray with SIGKILL to ranks and driver, or SIGTERM to the driver, equal an uninterrupted run."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from dataprep.io.storage import read_json_lines
from tests.helpers.paths import ROOT
from train import resume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # many groups
STEPS, EVERY = 24, 4
PLAN = [
    ["forward", "rank1", 2],
    ["optimizer", "rank0", 6],
    ["before marker", "driver", 10],
    ["backward", "rank1", 14],
    ["in save", "rank0", 18],
]


def run_driver(folder: Path, plan: list[list[Any]], stop: int = -1) -> subprocess.CompletedProcess[str]:
    """Runs one driver to its end."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [
        sys.executable,
        "-m",
        "tests.helpers.training_kill_run",
        str(folder),
        str(STEPS),
        json.dumps(plan),
        str(stop),
    ]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=800, check=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run on two ranks without Ray, uninterrupted."""
    from tests.helpers.toys import two_ranks

    folder = tmp_path_factory.mktemp("uninterrupted")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"steps": STEPS, "checkpoint_every": EVERY, "zero_stage": 2, "overlap_save": 0}
    torch.multiprocessing.spawn(two_ranks, (port, str(folder), [("run", [None], settings)]), nprocs=2)
    return folder / "run"


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """Asserts equal losses and EMA weights."""
    one, other = ([(row["step"], row["loss"]) for row in read_json_lines(f"{run}/log.jsonl")] for run in (ours, theirs))
    assert one == other
    one, other = (load_file(run / "export/weights.safetensors") for run in (ours, theirs))
    assert all(torch.equal(one[name], other[name]) for name in other)


def count_repeated(folder: Path, most: int) -> int:
    """Returns the number of repeated steps per rank; asserts that at most ``most`` are repeated at once."""
    total = 0
    for rank in (0, 1):
        steps = [step for step, _ in read_json_lines(f"{folder}/steps-{rank}.jsonl")]
        assert set(steps) == set(range(STEPS))
        for before, after in itertools.pairwise(steps):
            assert 0 <= before - after + 1 <= most, (before, after)
            total += max(0, before - after + 1)
    return total // 2


def test_kills_of_ranks_and_driver_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    drivers = sum(victim == "driver" for _, victim, _ in PLAN)
    for _ in range(drivers):
        killed = run_driver(tmp_path, PLAN)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    last = run_driver(tmp_path, PLAN)
    assert last.returncode == 0, last.stderr[-3000:]
    assert len(list((tmp_path / "kills").iterdir())) == len(PLAN)
    assert_equal_runs(tmp_path / "run", uninterrupted)
    again = count_repeated(tmp_path, EVERY)
    print(f"{len(PLAN)} kills on Ray, {drivers} of them of the driver: {again} of {STEPS} steps repeated")


def test_sigterm_to_the_driver_saves_a_checkpoint_to_resume_from(uninterrupted: Path, tmp_path: Path) -> None:
    stopped = run_driver(tmp_path, [], stop=9)
    assert stopped.returncode == 3, stopped.stderr[-3000:]
    newest = resume.find_newest(str(tmp_path / "run/checkpoints"))
    assert newest == str(tmp_path / "run/checkpoints/step-00000011")  # received in update 10, agreed on in update 11
    assert f"at step 11, saved as {newest}" in stopped.stdout
    resumed = run_driver(tmp_path, [], stop=9)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_equal_runs(tmp_path / "run", uninterrupted)
    assert count_repeated(tmp_path, 0) == 0
