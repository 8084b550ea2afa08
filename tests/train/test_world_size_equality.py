"""A small equality table: interrupted five times, resumed each time, compared with the uninterrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

SCRIPT = """
import json, sys
from pathlib import Path
from benchmarks import equality, ranks
ranks.warm_up()
table = [case for what in json.loads(sys.argv[2]) for case in equality.make_cases(*what)]
print(json.dumps(equality.measure_cases(Path(sys.argv[1]), table)))
"""


def measure(folder: Path, *what: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Returns the table's rows for these stages, sizes, accumulations and tasks, measured in separate processes."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(what)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def assert_equal(rows: list[dict[str, Any]]) -> None:
    """Checks equality with the plain run: same samples, float rounding, bit by bit where nothing changes."""
    for row in rows:
        assert row["loss_error"] <= 1e-5 and row["ema_error"] <= 1e-5 and row["same_samples"], row
        assert row.get("bit_identical", True), row


def test_two_ranks_with_zero_3_interrupted_five_times(tmp_path: Path) -> None:
    rows = measure(tmp_path, ((3,), (2,), (1,)))
    assert [(row["attempts"], "bit_identical" in row) for row in rows] == [(1, False), (6, True)]
    assert_equal(rows)


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_sizes_and_stages_change_at_each_resume(tmp_path: Path) -> None:
    rows = measure(tmp_path, ((0, 3), (1, 2), (2, 1)))
    assert sum("another size, stage" in row["case"] for row in rows) == 2
    assert_equal(rows)


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_every_task_is_the_same_at_any_number_of_ranks_and_any_stage(tmp_path: Path) -> None:
    tasks = ("vq with a discriminator", "refinement", "diffusion with a discriminator", "prior")
    rows = measure(tmp_path, *(((stage,), (2,), (1,), task) for task in tasks for stage in (0, 2, 3)))
    assert len(rows) == 24
    assert_equal(rows)
