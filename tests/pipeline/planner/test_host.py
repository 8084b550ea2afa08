"""The host's part of a training step: decoding and gathering on the cores of a machine."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from dataprep.images.pixel_encodings import jpeg_options
from dataprep.pack_config import PackConfig
from pipeline.planner.catalog import Assumptions
from pipeline.planner.choices import plan_option
from pipeline.planner.host import count_decoded_pixels, estimate_host_ms, loader_cores
from pipeline.planner.training import StageModel
from tests.helpers.plans import pick_machines
from train.loader.jpeg_crop import cut_jpeg
from train.tasks.diffusion_config import DiffusionTrainingConfig

JPEG = PackConfig(resolutions=(64, 256, 1024), encoding="jpeg")
ASSUMED = Assumptions(jpeg_mpixels=100, png_mpixels=50, gather_us=0, unpack_gb_s=1e9)


def make_stage(**keys: Any) -> DiffusionTrainingConfig:
    given: dict[str, Any] = {"model": "small-sr1024", "batch_size": 512}
    return DiffusionTrainingConfig(**given | {"diffusion": {"prediction": "x0", "lowres_max_level": 0.3}} | keys)


@pytest.mark.parametrize(("size", "side"), [(1024, 256), (256, 64), (256, 256), (64, 16), (1024, 1000)])
def test_decoded_pixels_are_those_of_the_cuts(size: int, side: int) -> None:
    rng, seen = np.random.default_rng(0), []
    data = cv2.imencode(".jpg", np.zeros((size, size, 3), np.uint8), jpeg_options(JPEG, (size, size)))[1]
    for _ in range(200):
        top, left = rng.integers(0, (size - side) // 4 + 1, 2) * 4
        cut = cut_jpeg(data, (size, size), int(top), int(left), side, side)
        seen.append(size * size if cut is None else cut.height * cut.width)
    assert count_decoded_pixels(size, side, "jpeg") == pytest.approx(np.mean(seen), rel=0.15)
    assert count_decoded_pixels(size, side, "png") == size * size


def test_a_sample_costs_what_its_columns_do() -> None:
    whole = make_stage(resolution=1024, low_resolution=256)
    assert estimate_host_ms(whole, JPEG, 0, ASSUMED) == pytest.approx((1024**2 + 256**2) / 1e5)
    png = JPEG.model_copy(update={"encoding": "png"})
    assert estimate_host_ms(whole, png, 0, ASSUMED) == pytest.approx(2 * (1024**2 + 256**2) / 1e5)
    crop = estimate_host_ms(make_stage(resolution=1024, low_resolution=256, crop=256), JPEG, 0, ASSUMED)
    assert crop < 0.12 * estimate_host_ms(whole, JPEG, 0, ASSUMED)
    base = make_stage(resolution=64, model="tiny-base")
    assert estimate_host_ms(base, JPEG, 0, ASSUMED) == 0
    text = Assumptions(gather_us=30, unpack_gb_s=0.5)
    assert estimate_host_ms(base, JPEG, 50_000, text) == pytest.approx(0.03 + 0.1)


@pytest.mark.parametrize(
    ("workers", "cores", "ranks", "loading"),
    [(None, 192, 8, 128), (None, 26, 1, 16), (None, 4, 4, 4), (2, 192, 8, 16), (8, 4, 1, 4)],
)
def test_a_rank_loads_with_its_threads(workers: int | None, cores: int, ranks: int, loading: float) -> None:
    assert loader_cores(make_stage(resolution=256, low_resolution=64, workers=workers), cores, ranks) == loading


def test_cores_bound_a_stage_that_they_cannot_feed() -> None:
    table = pick_machines("8xH100")
    stage = make_stage(resolution=1024, low_resolution=256, crop=256)
    for host_ms, bound in ((0.01, "GPU"), (50.0, "CPU")):
        model = StageModel("sr", stage, 512, 20, host_ms=host_ms)
        option = plan_option("8xH100", table.machines["8xH100"], 1, [model], {"sr": 1.0}, table.assumptions)
        assert option is not None
        group = option.groups[0]
        assert group.bound == bound
        assert group.host == pytest.approx(host_ms / 1e3 * 512 / 128)
        assert (group.step == group.host) is (bound == "CPU")
