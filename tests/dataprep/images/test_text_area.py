"""How much of an image is text: networks of the forms of DB and EAST whose text is red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from dataprep.images.text_area import TextConfig, TextDetector, find_text_model_files, load_text_detector
from dataprep.io.errors import UserError
from tests.helpers.text_networks import write_db_network, write_east_network

GREEN, RED, BLUE = (30, 60, 40), (255, 0, 0), (0, 0, 255)
WRITE: dict[str, Callable[[Path], Path]] = {"db": write_db_network, "east": write_east_network}


def load(folder: Path, detector: str) -> TextDetector:
    model = WRITE[detector](folder / f"{detector}.onnx")
    return load_text_detector(TextConfig(model=str(model), detector=detector, side=160))


def draw_text(colour: tuple[int, int, int], side: int = 160) -> np.ndarray:
    """A line over the middle of the image, about 24 of 160 pixels high and 124 wide."""
    image, scale = np.full((side, side, 3), GREEN, np.uint8), side / 160
    place, size = (round(18 * scale), round(92 * scale)), 0.8 * scale
    cv2.putText(image, "SALE 50%", place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, round(3 * scale))
    return image


@pytest.mark.parametrize("detector", ["db", "east"])
def test_drawn_text_has_an_area_and_other_images_have_none(detector: str, tmp_path: Path) -> None:
    found = load(tmp_path, detector)
    assert found.measure(np.full((90, 200, 3), GREEN, np.uint8)) == 0
    assert found.measure(draw_text(BLUE)) == 0  # were the channels swapped, it would be text
    assert 0.03 < found.measure(draw_text(RED)) < 0.4


def test_a_region_grows_by_area_over_perimeter(tmp_path: Path) -> None:
    square = np.full((160, 160, 3), GREEN, np.uint8)
    square[60:80, 40:120] = RED
    (corners,) = load(tmp_path, "db").find_regions(square)
    width, height = 85, 25  # between the centres of the outermost pixels; the network adds three on each side
    grown = 1.5 * width * height / (width + height)  # 1.5 x area / perimeter on each side
    assert np.ptp(corners, axis=0) == pytest.approx([width + grown, height + grown], abs=0.01)
    assert corners.mean(axis=0) == pytest.approx([79.5, 69.5])


def test_boxes_of_east_are_those_of_opencv(tmp_path: Path) -> None:
    path = write_east_network(tmp_path / "east.onnx", (3, 40, 8, 6, 0.3))
    square = np.full((160, 160, 3), GREEN, np.uint8)
    square[60:64, 40:44] = square[100:108, 100:104] = RED  # two cells at the second place, one of which is suppressed
    found = load_text_detector(TextConfig(model=str(path), detector="east", side=160)).find_regions(square)
    reference = cv2.dnn.TextDetectionModel_EAST(str(path))
    reference.setConfidenceThreshold(0.5).setNMSThreshold(0.4)
    reference.setInputParams(1.0, (160, 160), (123.68, 116.78, 103.94), True)
    expected, _ = reference.detect(square[..., ::-1].copy())
    assert len(expected) == 2
    assert np.abs(np.array(found) - np.array(expected)).max() <= 0.5  # OpenCV rounds


def test_the_share_is_that_of_the_image_at_any_size_and_aspect(tmp_path: Path) -> None:
    found = load(tmp_path, "east")
    for height, width in ((160, 160), (160, 80), (80, 160), (640, 320), (40, 20)):
        image = np.full((height, width, 3), GREEN, np.uint8)
        image[: height // 2, : width // 2] = RED
        assert found.measure(image) == pytest.approx(0.25, abs=0.03), (height, width)
    whole = np.full((320, 320, 3), RED, np.uint8)
    assert found.measure(whole) == 1.0 and load(tmp_path, "db").measure(whole) == 1.0


def test_overlapping_regions_count_once_and_weak_ones_not(tmp_path: Path) -> None:
    path = str(write_east_network(tmp_path / "wide.onnx", (0, 60, 4, 0, 0)))
    image = np.full((160, 160, 3), GREEN, np.uint8)
    image[40:44, 0:4] = image[40:44, 40:44] = RED  # boxes of 60 x 4: together 100 x 4
    sure = TextConfig(model=path, detector="east", side=160)
    assert load_text_detector(sure).measure(image) == pytest.approx(100 * 4 / 160**2, rel=0.3)
    image[:] = (174, 60, 30)  # a probability of about 0.6
    weak = load_text_detector(sure.model_copy(update={"min_confidence": 0.9}))
    assert load_text_detector(sure).measure(image) > 0.9 and weak.measure(image) == 0


def test_wrong_models_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotate\.text\.model=.*gone\.onnx: no such file; give an ONNX file of DB"):
        find_text_model_files(TextConfig(model=str(tmp_path / "gone.onnx")))
    (tmp_path / "text.onnx").write_text("hello")
    db, east = (str(WRITE[kind](tmp_path / f"{kind}.onnx")) for kind in ("db", "east"))
    two = str(write_db_network(tmp_path / "two.onnx", channels=2))
    cases = (
        TextConfig(model=str(tmp_path / "text.onnx")),
        TextConfig(model=east, side=160),
        TextConfig(model=db, detector="east", side=160),
        TextConfig(model=two, side=160),
    )
    for config in cases:
        with pytest.raises(UserError, match=r"^annotate\.text\.model=.*not a network of this form[^\n]*; give a"):
            load_text_detector(config)
    with pytest.raises(ValidationError, match="'craft' is unknown; take one of db, east"):
        TextConfig(model="x", detector="craft")
    with pytest.raises(ValidationError, match="multiple of 32"):
        TextConfig(model="x", side=300)
