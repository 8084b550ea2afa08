"""Hung processes, skipped updates, loss spikes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.toys import ToyData, ToyTask, config
from train.errors import NonFiniteError
from train.loop import train
from train.watchdog import SpikeDetector


def test_a_hung_process_ends_itself_with_its_stacks(tmp_path: Path) -> None:
    script = (
        "import time; from tests.helpers.toys import *\n"
        "class Hangs(ToyTask):\n"
        "    def loss(self, model, batch, random):\n"
        "        time.sleep(600 if random.step == 3 else 0); return super().loss(model, batch, random)\n"
        "train(Hangs(), config(hang_seconds=8), ToyData(), 'out', 0)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr and "in loss" in done.stderr


def test_skips_are_counted_over_a_resume(tmp_path: Path) -> None:
    """Three bad updates in a row stop the run, also where a checkpoint lies between them."""
    bad = ToyData(poison=tuple(range(50)))
    with pytest.raises(NonFiniteError, match="3 updates in a row"):
        train(ToyTask(), config(max_skipped=3, checkpoint_every=2), bad, str(tmp_path), 0)
    with pytest.raises(NonFiniteError, match="step 2: 3 updates in a row"):
        train(ToyTask(), config(max_skipped=3, checkpoint_every=2), bad, str(tmp_path), 0)


def test_a_spike_is_detected_and_excluded_from_the_statistics() -> None:
    detector = SpikeDetector()
    noise = np.random.default_rng(0).standard_normal(40) * 0.05
    assert [detector.check(1 + value) for value in noise] == [None] * 40
    copy = SpikeDetector(detector.state)
    for one in (detector, copy):
        first, second = one.check(3.0), one.check(3.0)
        assert first is not None and first == second and first > 6
        assert one.check(1.0) is None
    assert detector.state == copy.state


def test_falling_losses_and_the_first_windows_are_no_spikes() -> None:
    assert [SpikeDetector().check(100.0)] == [None]
    detector = SpikeDetector()
    assert all(detector.check(4 * 0.9**window + 0.1) is None for window in range(60))
