"""Graceful shutdown."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dataprep.io.signals import SHUTDOWN
from tests.helpers.toys import ToyData, ToyTask, config, rows, run
from train import resume
from train.errors import Preempted
from train.loader.loader import Batch
from train.loader.sampler import SampleRandom
from train.loop import train


@pytest.mark.parametrize("overlap", [0, 100])
def test_sigterm_saves_at_the_next_step_and_stops(tmp_path: Path, overlap: int) -> None:
    class Terminated(ToyTask):
        def loss(
            self, model: Callable[..., Any], batch: Batch, random: SampleRandom
        ) -> tuple[Tensor, dict[str, Tensor]]:
            if random.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, batch, random)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"step 9, saved as .*step-00000009") as stopped:
        train(Terminated(), config(overlap_save=overlap), ToyData(), str(tmp_path / "terminated"), 0, ToyData(seed=5))
    assert signal.getsignal(signal.SIGTERM) == handler and not SHUTDOWN.is_set()
    assert resume.find_damage(stopped.value.path) is None
    resumed = run(tmp_path / "terminated")
    assert resumed is not None and resumed["resumed_from"] == 9
    run(tmp_path / "whole")
    assert rows(tmp_path / "terminated") == rows(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "export/weights.safetensors") for name in ("terminated", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_request_at_the_last_step_is_ignored(tmp_path: Path) -> None:
    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "log" and event["row"]["step"] == 20:
            SHUTDOWN.set()

    assert train(ToyTask(), config(), ToyData(), str(tmp_path), 0, on_event=on_event)["step"] == 20
