"""Prefetching: stalls and timeouts."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.toys import ToyData, ToyTask, config
from train.errors import StalledLoaderError
from train.loader.loader import Batch
from train.loop import train


def test_a_stalled_loader_stops_the_run(tmp_path: Path) -> None:
    release = threading.Event()

    class Stalled(ToyData):
        def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
            if positions[0] >= 5 * 8:
                release.wait()
            return super().gather(rows, positions)

    try:
        with pytest.raises(StalledLoaderError, match=r"step 5: no batch within 0.2 s; check the storage"):
            train(ToyTask(), config(stall_seconds=0.2), Stalled(), str(tmp_path), 0)
    finally:
        release.set()


def test_the_loaders_own_timeout_is_not_a_stall(tmp_path: Path) -> None:
    class Slow(ToyData):
        def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
            raise TimeoutError("the bucket did not answer")

    with pytest.raises(TimeoutError, match="the bucket"):
        train(ToyTask(), config(), Slow(), str(tmp_path), 0)
