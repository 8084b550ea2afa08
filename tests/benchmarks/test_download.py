"""The arithmetic of the download benchmark, and the measurement of a whole command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import process_tree
from benchmarks.download import CLAIMED, COSTS, SIDES, fit_lines, make_claims
from benchmarks.process_tree import run_measured

START, SLOPE = {"img2dataset": 10.0, "imagen-ray": 20.0}, {"img2dataset": 0.004, "imagen-ray": 0.001}


def make_rows(sizes: tuple[int, ...], processes: int = 2) -> list[dict[str, Any]]:
    return [
        {"round": turn, "side": side, "kind": "small", "processes": processes, "rows": size, "images": size}
        | dict.fromkeys(COSTS, START[side] + SLOPE[side] * size + turn - 1)
        | {"peak_mib": 100.0}
        for turn in range(3)
        for side in SIDES
        for size in sizes
    ]


def test_two_sizes_give_start_and_slope() -> None:
    lines = fit_lines([*make_rows((1000, 4000, 20_000)), *make_rows((500,), processes=1)])
    assert [line["side"] for line in lines] == [*SIDES]
    for line in lines:
        assert line["milliseconds_per_image"] == line["millicpu_seconds_per_image"] == SLOPE[line["side"]] * 1000
        assert line["start_seconds"] == START[line["side"]]


def test_claims_compare_whole_commands_and_slopes() -> None:
    rows = make_rows((1000, *CLAIMED))
    claims = make_claims(rows, fit_lines(rows))
    ratio = {size: (10 + 0.004 * size) / (20 + 0.001 * size) for size in CLAIMED}
    expected = [value for size in CLAIMED for value in (ratio[size], ratio[size], 1.0)] + [4.0, 4.0]
    assert [claim["value"] for claim in claims] == [round(value, 4) for value in expected]
    assert make_claims(make_rows((500,)), []) == []


@pytest.mark.parametrize("groups", [process_tree.GROUPS, ()], ids=["control group", "samples"])
def test_a_detached_process_that_nobody_waits_for_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: Any
) -> None:
    monkeypatch.setattr(process_tree, "GROUPS", groups)
    burn = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}], start_new_session=True)"
    code += "; held = bytearray(100 << 20); import time; time.sleep(1); print('done')"
    done = run_measured([sys.executable, "-c", code], tmp_path, dict(os.environ))
    assert (done.returncode, done.output) == (0, "done\n")
    assert done.cpu_seconds >= 0.5 and done.seconds >= 1
    assert done.peak_mib > 90
