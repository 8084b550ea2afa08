"""Finding and blurring faces: the cascade on drawn faces, a network of YuNet's form on red squares."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from dataprep.images.faces import FacesConfig, _scale_boxes, blur_boxes, find_model_files, load_detector
from dataprep.io.errors import UserError
from tests.helpers.face_network import write_face_network
from tests.helpers.images import draw_face, picture


def place(image: np.ndarray, part: np.ndarray, left: int, top: int) -> None:
    image[top : top + part.shape[0], left : left + part.shape[1]] = part


def overlap(box: np.ndarray, other: list[float]) -> float:
    inner = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    shared = float(np.prod(np.maximum(inner, 0)))
    return shared / (sum(areas) - shared)


def test_the_cascade_finds_drawn_faces_and_nothing_else() -> None:
    image = picture(3, 320, 200)
    place(image, draw_face(96), 10, 50)
    place(image, draw_face(120), 180, 40)
    detector = load_detector(FacesConfig())
    boxes = detector.detect(image)
    assert boxes.dtype == np.float32 and boxes.shape == (2, 4)
    assert overlap(boxes[0], [10 / 320, 50 / 200, 106 / 320, 146 / 200]) > 0.7
    assert overlap(boxes[1], [180 / 320, 40 / 200, 300 / 320, 160 / 200]) > 0.7
    assert [len(detector.detect(picture(seed, 320, 200))) for seed in range(4)] == [0] * 4
    assert len(load_detector(FacesConfig(min_side=0.55)).detect(image)) == 1


def test_a_network_of_yunets_form_finds_what_it_was_made_for(tmp_path: Path) -> None:
    model = str(write_face_network(tmp_path / "faces.onnx"))
    detector = load_detector(FacesConfig(detector="yunet", model=model))
    image = np.full((96, 128, 3), (20, 20, 30), np.uint8)
    image[32:64, 64:96] = (255, 0, 0)
    image[64:96, 0:32] = (0, 0, 255)  # blue: were the channels swapped, it would be this one
    assert detector.detect(image) == pytest.approx(np.array([[64 / 128, 32 / 96, 96 / 128, 64 / 96]]), abs=1e-3)
    assert detector.detect(image[:, ::-1].copy()) == pytest.approx(np.array([[0.25, 32 / 96, 0.5, 64 / 96]]), abs=1e-3)
    assert detector.detect(np.zeros((40, 50, 3), np.uint8)).shape == (0, 4)
    small = FacesConfig(detector="yunet", model=model, min_side=0.5)
    assert len(load_detector(small).detect(image)) == 0


def test_wrong_models_are_refused_in_one_line(tmp_path: Path) -> None:
    gone = FacesConfig(detector="yunet", model=str(tmp_path / "gone.onnx"))
    with pytest.raises(UserError, match=r"annotate\.faces\.model=.*gone\.onnx: no such file"):
        find_model_files(gone)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match=r"annotate\.faces\.model=.*not a network of YuNet's form.*detector=cascade"):
        load_detector(FacesConfig(detector="yunet", model=str(tmp_path / "text.onnx")))
    with pytest.raises(ValidationError, match="detector=yunet needs model"):
        FacesConfig(detector="yunet")
    with pytest.raises(ValidationError, match="detector=cascade has none"):
        FacesConfig(model="faces.onnx")
    with pytest.raises(ValidationError, match="'haar' is unknown; take one of cascade, yunet"):
        FacesConfig(detector="haar")


def test_blurring_hides_the_face_and_leaves_the_rest() -> None:
    image = picture(5, 256, 256)
    place(image, draw_face(96), 80, 70)
    detector = load_detector(FacesConfig())
    boxes = detector.detect(image)
    blurred = blur_boxes(image, boxes, margin=0.3)
    assert len(boxes) == 1 and len(detector.detect(blurred)) == 0
    left, top, right, bottom = (boxes[0] + np.array([-0.15, -0.15, 0.15, 0.15]) * (boxes[0, 2] - boxes[0, 0])) * 256
    outside = np.ones((256, 256), bool)
    outside[int(top) - 1 : int(bottom) + 2, int(left) - 1 : int(right) + 2] = False
    assert (blurred[outside] == image[outside]).all()
    detail = [float(cv2.Laplacian(part[90:140, 100:150], cv2.CV_64F).var()) for part in (image, blurred)]
    assert detail[1] < detail[0] / 50
    assert abs(blurred.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 2  # colours stay


@pytest.mark.parametrize("box", [[0.9, 0.9, 1.0, 1.0], [0.5, 0.5, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]])
def test_boxes_at_the_edge_and_empty_ones(box: list[float]) -> None:
    image = picture(1, 40, 30)
    blurred = blur_boxes(image, np.array([box]), margin=2.0)
    assert blurred.shape == image.shape and blurred.dtype == np.uint8
    assert (blurred != image).any() == (box[0] < box[2])
    assert (blur_boxes(image, np.zeros((0, 4)), margin=0.3) == image).all()


def test_the_margin_enlarges_what_is_blurred() -> None:
    image, box = picture(1, 100, 80), np.array([[0.4, 0.4, 0.6, 0.6]])
    changed = [(blur_boxes(image, box, margin) != image).any(axis=2) for margin in (0.0, 1.0)]
    assert not changed[0][:, :40].any() and not changed[0][:, 60:].any() and changed[0].any()
    assert changed[1][:, 31:40].any() and changed[1][:, 60:69].any() and not changed[1][:, :30].any()


def test_boxes_are_cut_at_the_edge_sorted_and_dropped_outside() -> None:
    found = np.array([[90, 10, 20, 20], [-10, 10, 30, 20], [100, 5, 10, 10], [20, -30, 10, 20]], np.float32)
    assert _scale_boxes(found, (50, 100, 3)).tolist() == pytest.approx(
        np.array([[0, 0.2, 0.2, 0.6], [0.9, 0.2, 1, 0.6]])
    )
