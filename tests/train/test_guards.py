"""Stop notices, hung processes, stalled loaders, loss spikes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_fakes import ToyData, ToyTask, config, rows, run

from train import checkpoint, guards
from train.data import Batch
from train.guards import NonFiniteError, Preempted, Spikes, StalledLoaderError
from train.loop import train


@pytest.mark.parametrize("overlap", [0, 100])
def test_sigterm_saves_at_the_next_step_and_leaves(tmp_path: Path, overlap: int) -> None:
    class Told(ToyTask):
        def loss(self, model, batch, random):
            if random.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, batch, random)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"step 9, saved as .*step-00000009") as left:
        train(Told(), config(overlap_save=overlap), ToyData(), str(tmp_path / "told"), 0, ToyData(seed=5))
    assert signal.getsignal(signal.SIGTERM) == handler and not guards.STOP.is_set()
    assert checkpoint.torn(left.value.path) is None
    resumed = run(tmp_path / "told")
    assert resumed is not None and resumed["resumed_from"] == 9
    run(tmp_path / "whole")
    assert rows(tmp_path / "told") == rows(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "export/weights.safetensors") for name in ("told", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_notice_at_the_last_step_stops_nothing(tmp_path: Path) -> None:
    def on_event(event: dict) -> None:
        if event["kind"] == "log" and event["row"]["step"] == 20:
            guards.STOP.set()

    assert train(ToyTask(), config(), ToyData(), str(tmp_path), 0, on_event=on_event)["step"] == 20


def test_a_stalled_loader_is_named(tmp_path: Path) -> None:
    release = threading.Event()

    class Stalled(ToyData):
        def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
            if positions[0] >= 5 * 8:
                release.wait()
            return super().gather(rows, positions)

    try:
        with pytest.raises(StalledLoaderError, match=r"step 5: no batch within 0.2 s; look at the storage"):
            train(ToyTask(), config(stall_seconds=0.2), Stalled(), str(tmp_path), 0)
    finally:
        release.set()


def test_a_loaders_own_timeout_is_not_taken_for_a_stall(tmp_path: Path) -> None:
    class Slow(ToyData):
        def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
            raise TimeoutError("the bucket did not answer")

    with pytest.raises(TimeoutError, match="the bucket"):
        train(ToyTask(), config(), Slow(), str(tmp_path), 0)


def test_a_hung_process_ends_itself_with_its_stacks(tmp_path: Path) -> None:
    script = (
        "import time; from train_fakes import *\n"
        "class Hangs(ToyTask):\n"
        "    def loss(self, model, batch, random):\n"
        "        time.sleep(600 if random.step == 3 else 0); return super().loss(model, batch, random)\n"
        "train(Hangs(), config(hang_seconds=3), ToyData(), 'out', 0)"
    )
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": f"{here.parents[1]}:{here}"}
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


def test_a_spike_is_noted_and_not_learned_from() -> None:
    spikes = Spikes()
    noise = np.random.default_rng(0).standard_normal(40) * 0.05
    assert [spikes.check(1 + value) for value in noise] == [None] * 40
    copy = Spikes(spikes.state)
    for one in (spikes, copy):
        first, second = one.check(3.0), one.check(3.0)
        assert first is not None and first == second > 6
        assert one.check(1.0) is None
    assert spikes.state == copy.state


def test_falling_losses_and_the_first_windows_are_no_spikes() -> None:
    assert [Spikes().check(100.0)] == [None]
    spikes = Spikes()
    assert all(spikes.check(4 * 0.9**window + 0.1) is None for window in range(60))
