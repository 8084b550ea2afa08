"""Memory of the loader."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.packs import write_pack
from train.loader.config import LoaderConfig
from train.loader.loader import Loader
from train.loader.sampler import SampleOrder


def test_memory_holds_two_windows(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", 0, 400, sizes=(64,), raw_up_to=64, rows=8)
    loader = Loader([pack], None, ("pixels_64",), "train", 0, 10, config=LoaderConfig(window_mb=1))
    assert isinstance(loader.order, SampleOrder) and loader.order.window_groups == 10  # of 8 raw images of 12 KB
    held = []
    for step in range(120):
        loader.batch(step)
        held.append(len(loader.window.futures))
    assert 20 <= max(held) <= 30  # a third one if a batch spans two windows
