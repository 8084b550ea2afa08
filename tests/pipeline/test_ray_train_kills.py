"""SIGKILL to ranks and to the driver under Ray Train, and SIGTERM to the driver: each time the same run in the end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from dataprep.storage import read_json_lines
from train import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # a group of workers takes Ray ten seconds and more
HERE = Path(__file__).parent
STEPS, EVERY = 24, 4
PLAN = [
    ["forward", "rank1", 2],
    ["optimizer", "rank0", 6],
    ["before marker", "driver", 10],
    ["backward", "rank1", 14],
    ["in save", "rank0", 18],
]


def drive(folder: Path, plan: list[list[Any]], stop: int = -1) -> subprocess.CompletedProcess[str]:
    """One driver, from its start to its end."""
    env = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent / 'train'}:{HERE}"}
    words = [sys.executable, str(HERE / "ray_kill_run.py"), str(folder), str(STEPS), json.dumps(plan), str(stop)]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=800, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run on two ranks without Ray, unbroken."""
    sys.path.insert(0, str(HERE.parent / "train"))
    from train_fakes import two_ranks

    folder = tmp_path_factory.mktemp("whole")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"steps": STEPS, "checkpoint_every": EVERY, "zero_stage": 2, "overlap_save": 0}
    torch.multiprocessing.spawn(two_ranks, (port, str(folder), [("run", [None], settings)]), nprocs=2)
    return folder / "run"


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """Same losses, same averages."""
    one, other = ([(row["step"], row["loss"]) for row in read_json_lines(f"{run}/log.jsonl")] for run in (ours, theirs))
    assert one == other
    one, other = (load_file(run / "export/weights.safetensors") for run in (ours, theirs))
    assert all(torch.equal(one[name], other[name]) for name in other)


def repeated(folder: Path, most: Callable[[int], bool]) -> int:
    """Steps that a rank made again; ``most`` judges how many at once."""
    total = 0
    for rank in (0, 1):
        steps = [step for step, _ in read_json_lines(f"{folder}/steps-{rank}.jsonl")]
        assert set(steps) == set(range(STEPS))
        for before, after in itertools.pairwise(steps):
            assert after <= before + 1 and most(before - after + 1), (before, after)
            total += max(0, before - after + 1)
    return total // 2


def test_kills_of_ranks_and_of_the_driver(whole: Path, tmp_path: Path) -> None:
    drivers = sum(victim == "driver" for _, victim, _ in PLAN)
    for _ in range(drivers):
        killed = drive(tmp_path, PLAN)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    last = drive(tmp_path, PLAN)
    assert last.returncode == 0, last.stderr[-3000:]
    assert len(list((tmp_path / "kills").iterdir())) == len(PLAN)
    assert_equal_runs(tmp_path / "run", whole)
    again = repeated(tmp_path, lambda steps: steps <= EVERY)
    print(f"{len(PLAN)} kills under Ray Train, {drivers} of them of the driver: {again} of {STEPS} steps repeated")


def test_sigterm_to_the_driver_saves_now_and_the_same_command_resumes(whole: Path, tmp_path: Path) -> None:
    stopped = drive(tmp_path, [], stop=9)
    assert stopped.returncode == 3, stopped.stderr[-3000:]
    newest = checkpoint.newest(str(tmp_path / "run/checkpoints"))
    assert newest == str(tmp_path / "run/checkpoints/step-00000011")  # told in update 10, agreed on in update 11
    assert f"stopped on notice at step 11, saved as {newest}" in stopped.stdout
    resumed = drive(tmp_path, [], stop=9)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert_equal_runs(tmp_path / "run", whole)
    assert repeated(tmp_path, lambda steps: steps <= 0) == 0
