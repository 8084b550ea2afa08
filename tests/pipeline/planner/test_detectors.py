"""CPU time of the detectors."""

from __future__ import annotations

from typing import Any

import pytest

from dataprep.annotate_config import AnnotateConfig
from dataprep.download.config import DownloadConfig
from dataprep.images.faces import FACE_DETECTORS, FacesConfig
from dataprep.images.text_area import TEXT_DETECTORS, TextConfig
from pipeline.planner.catalog import Assumptions
from pipeline.planner.detectors import estimate_detector_seconds, list_face_speeds, list_text_speeds

ASSUMED = Assumptions(aspect_area=1.5, cascade_mpixels=1, yunet_mpixels=2, db_mpixels=3, east_mpixels=4)
YUNET: dict[str, Any] = {"detector": "yunet", "model": "faces.onnx"}


def estimate(image_size: int, mode: Any = "keep_ratio", **keys: Any) -> float:
    stored = DownloadConfig(image_size=image_size, resize_mode=mode)
    return estimate_detector_seconds(AnnotateConfig(**keys), stored, ASSUMED)


def test_every_detector_has_a_speed() -> None:
    assert list(list_face_speeds(ASSUMED)) == list(FACE_DETECTORS)
    assert list(list_text_speeds(ASSUMED)) == list(TEXT_DETECTORS)


def test_no_detector_costs_nothing() -> None:
    assert estimate(1000) == 0


def test_the_cascade_searches_an_image_shrunk_to_its_smallest_face() -> None:
    small = FacesConfig(min_side=0.05)
    assert estimate(200, faces=small) == pytest.approx(0.04 * 1.5)  # a smallest face of 10 pixels: searched as it is
    assert estimate(960, faces=small) == estimate(480, faces=small) == pytest.approx(0.48**2 * 1.5)
    assert estimate(480, "center_crop", faces=small) == pytest.approx(0.48**2)
    assert estimate(480, faces=FacesConfig(min_side=0.1)) == pytest.approx(0.24**2 * 1.5)


def test_yunet_searches_whole_images_and_text_is_searched_in_a_square() -> None:
    assert estimate(1000, faces=FacesConfig(**YUNET)) == pytest.approx(1.5 / 2)
    text = TextConfig(model="text.onnx", side=640)
    assert estimate(1000, text=text) == estimate(100, text=text) == pytest.approx(0.64**2 / 3)
    east = text.model_copy(update={"detector": "east"})
    assert estimate(1000, faces=FacesConfig(**YUNET), text=east) == pytest.approx(1.5 / 2 + 0.64**2 / 4)
