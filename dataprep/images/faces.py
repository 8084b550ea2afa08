"""Finding faces in images, and blurring them.

A box is (left, top, right, bottom) as shares of the image's width and height, so that it holds at any size.
`FACE_DETECTORS` lists the detectors. Light: importing it loads no OpenCV.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from dataprep.io.config import Config, NameIn
from dataprep.io.errors import UserError

CASCADE = "haarcascade_frontalface_default.xml"  # shipped with OpenCV
CASCADE_VOTES = 5  # overlapping windows that must agree; OpenCV's examples use 3 to 6
SUPPRESSION = 0.3  # overlap above which the weaker of two boxes is dropped, YuNet's default
MOST_FACES = 5000  # candidates per image, YuNet's default
BLUR_SHARE = 0.15  # standard deviation of the blur over the shorter side of a box: features of a face are gone


class FaceDetector(Protocol):
    """Finds faces."""

    @classmethod
    def load(cls, config: FacesConfig) -> Self:
        """Loads what the detector needs; raises UserError for a file that it cannot use."""

    def detect(self, image_HWC: np.ndarray) -> np.ndarray:
        """Returns the boxes in uint8 RGB as float32 (N, 4) in [0, 1], from left to right."""


class CascadeDetector:
    """Viola and Jones' cascade for frontal faces, which comes with OpenCV; misses turned and small faces."""

    needs_model = False

    def __init__(self, cascade: Any, min_side: float) -> None:
        self.cascade, self.min_side = cascade, min_side

    @classmethod
    def load(cls, config: FacesConfig) -> Self:
        """Loads the cascade from OpenCV's data."""
        import cv2

        return cls(cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / CASCADE)), config.min_side)

    def detect(self, image_HWC: np.ndarray) -> np.ndarray:
        """Returns the boxes in uint8 RGB as float32 (N, 4) in [0, 1], from left to right."""
        import cv2

        grey = cv2.equalizeHist(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY))
        side = max(1, round(self.min_side * min(image_HWC.shape[:2])))
        found = self.cascade.detectMultiScale(grey, 1.1, CASCADE_VOTES, minSize=(side, side))
        return _scale_boxes(np.asarray(found, np.float32).reshape(-1, 4), image_HWC.shape)


class YuNetDetector:
    """OpenCV's YuNet, from a local ONNX file such as ``face_detection_yunet_2023mar.onnx`` of OpenCV's model zoo."""

    needs_model = True

    def __init__(self, network: Any, min_side: float) -> None:
        self.network, self.min_side = network, min_side

    @classmethod
    def load(cls, config: FacesConfig) -> Self:
        """Loads the network; raises UserError if the file is missing or not YuNet's."""
        import cv2

        (path,) = find_model_files(config)
        try:
            network = cv2.FaceDetectorYN.create(path, "", (64, 64), config.min_confidence, SUPPRESSION, MOST_FACES)
            network.detect(np.zeros((64, 64, 3), np.uint8))
        except cv2.error as error:
            raise UserError(
                f"annotate.faces.model={path}: not a network of YuNet's form ({str(error).splitlines()[0]}); give "
                "face_detection_yunet_*.onnx of OpenCV's model zoo, or set annotate.faces.detector=cascade"
            ) from error
        return cls(network, config.min_side)

    def detect(self, image_HWC: np.ndarray) -> np.ndarray:
        """Returns the boxes in uint8 RGB as float32 (N, 4) in [0, 1], from left to right."""
        import cv2

        height, width = image_HWC.shape[:2]
        self.network.setInputSize((width, height))
        _, found = self.network.detect(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR))
        boxes = np.zeros((0, 4), np.float32) if found is None else np.asarray(found[:, :4], np.float32)
        large = boxes[:, 2:].min(axis=1, initial=np.inf) >= self.min_side * min(height, width)
        return _scale_boxes(boxes[large], image_HWC.shape)


# A new detector is one class and one line here.
FACE_DETECTORS: dict[str, type[CascadeDetector | YuNetDetector]] = {
    "cascade": CascadeDetector,
    "yunet": YuNetDetector,
}


class FacesConfig(Config):
    """How faces are found."""

    detector: Annotated[str, NameIn(FACE_DETECTORS)] = Field(
        default="cascade",
        description="cascade: comes with OpenCV, frontal faces only; yunet: better, needs its ONNX file",
    )
    model: str | None = Field(default=None, description="YuNet's ONNX file, on every machine of the cluster")
    min_confidence: float = Field(default=0.7, gt=0, le=1, description="of a face, for yunet")
    min_side: float = Field(default=0.05, ge=0, le=1, description="smallest face, as a share of the shorter side")

    @model_validator(mode="after")
    def _model_fits(self) -> FacesConfig:
        needs = FACE_DETECTORS[self.detector].needs_model
        if needs and self.model is None:
            raise ValueError(f"detector={self.detector} needs model, an ONNX file; or take detector=cascade")
        if not needs and self.model is not None:
            raise ValueError(f"model={self.model}: detector={self.detector} has none; take detector=yunet")
        return self


def find_model_files(config: FacesConfig) -> list[str]:
    """Returns the detector's own files; raises UserError for a missing one."""
    if config.model is None:
        return []
    if not Path(config.model).is_file():
        raise UserError(f"annotate.faces.model={config.model}: no such file; give YuNet's ONNX file")
    return [config.model]


def load_detector(config: FacesConfig) -> FaceDetector:
    """Loads the detector that ``config`` names; raises UserError for a file that it cannot use."""
    return FACE_DETECTORS[config.detector].load(config)


def blur_boxes(image_HWC: np.ndarray, boxes_N4: np.ndarray, margin: float) -> np.ndarray:
    """Returns uint8 RGB with the ellipses in the boxes blurred; each box grows by ``margin`` of its sides first.

    The edge of an ellipse fades, so that a network does not learn it.
    """
    import cv2

    blurred_HWC, height, width = image_HWC.copy(), *image_HWC.shape[:2]
    for left, top, right, bottom in boxes_N4:
        more_x, more_y = margin * (right - left) / 2, margin * (bottom - top) / 2
        x0, x1 = (round(np.clip(x, 0, 1) * width) for x in (left - more_x, right + more_x))
        y0, y1 = (round(np.clip(y, 0, 1) * height) for y in (top - more_y, bottom + more_y))
        if x1 - x0 < 1 or y1 - y0 < 1:
            continue
        sigma = max(1.0, BLUR_SHARE * min(x1 - x0, y1 - y0))
        part = image_HWC[y0:y1, x0:x1]
        smooth = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        mask = np.zeros(part.shape[:2], np.float32)
        centre, axes = ((x1 - x0) // 2, (y1 - y0) // 2), ((x1 - x0) // 2, (y1 - y0) // 2)
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 1.0, -1)
        mask = cv2.GaussianBlur(mask, (0, 0), sigma / 4)[..., None]
        mixed = smooth * mask + blurred_HWC[y0:y1, x0:x1] * (1 - mask)
        blurred_HWC[y0:y1, x0:x1] = np.rint(mixed).astype(np.uint8)
    return blurred_HWC


def _scale_boxes(boxes_N4: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turns (left, top, width, height) in pixels into sorted boxes; each has a part inside the image."""
    size = np.array([shape[1], shape[0]] * 2, np.float32)
    corners = np.concatenate([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], axis=1) / size
    corners = np.clip(corners, 0, 1)
    inside = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    return corners[inside][np.lexsort(corners[inside].T[::-1])]
