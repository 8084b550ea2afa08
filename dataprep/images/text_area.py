"""How much of an image is covered by text, by a network from a local file that OpenCV runs.

`TEXT_DETECTORS` lists the detectors. Images are scaled to a square input with a border, so that a result depends on
nothing but the image. Light: importing it loads no OpenCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.io.config import Config, NameIn
from dataprep.io.errors import UserError

STRIDE = 32  # both networks halve the image five times
DB_THRESHOLD = 0.3  # probability from which a pixel belongs to text, OpenCV's and PaddleOCR's default
DB_UNCLIP = 1.5  # growth of a region, the paper's: DB is trained on shrunken regions
DB_MEAN = (122.67891434, 116.66876762, 104.00698793)  # BGR, of OpenCV's examples
EAST_MEAN = (123.68, 116.78, 103.94)  # RGB, of OpenCV's examples
EAST_CELL = 4  # pixels per cell of the output
EAST_SUPPRESSION = 0.4  # overlap above which the weaker of two boxes is dropped, OpenCV's default


class TextDetector:
    """A network that finds regions of text; a subclass says how to feed it and how to read what it returns."""

    form: ClassVar[str]
    """What its file has to be, for errors."""

    def __init__(self, network: Any, side: int, min_confidence: float) -> None:
        self.network, self.side, self.min_confidence = network, side, min_confidence

    @classmethod
    def load(cls, config: TextConfig) -> Self:
        """Loads the network; raises UserError if the file is missing or of another form."""
        import cv2

        (path,) = find_text_model_files(config)
        try:
            loaded = cls(cv2.dnn.readNet(path), config.side, config.min_confidence)
            loaded.find_regions(np.zeros((config.side, config.side, 3), np.uint8))
        except (cv2.error, ValueError) as error:
            raise UserError(
                f"annotate.text.model={path}: not a network of this form, or not for annotate.text.side={config.side} "
                f"({str(error).splitlines()[0]}); give {cls.form}, or set annotate.text.detector to its kind"
            ) from error
        return loaded

    def find_regions(self, square_HWC: np.ndarray) -> Sequence[np.ndarray]:
        """Returns the corners of the regions in the network's square input, uint8 RGB: float (4, 2) each, x first."""
        raise NotImplementedError

    def measure(self, image_HWC: np.ndarray) -> float:
        """Returns the share of uint8 RGB that regions of text cover together."""
        import cv2

        scale = self.side / max(image_HWC.shape[:2])
        height, width = (max(1, round(scale * length)) for length in image_HWC.shape[:2])
        square_HWC = np.zeros((self.side, self.side, 3), np.uint8)
        shrinks = scale < 1
        square_HWC[:height, :width] = cv2.resize(
            image_HWC, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        covered = np.zeros((self.side, self.side), np.uint8)
        for corners_42 in self.find_regions(square_HWC):
            cv2.fillConvexPoly(covered, np.rint(corners_42).astype(np.int32), 1)
        return float(covered[:height, :width].mean())

    def _run(self, square_HWC: np.ndarray, scale: float, mean: tuple[float, ...], swap: bool) -> list[np.ndarray]:
        """Returns the outputs of the network; ``mean`` is in the network's order of channels."""
        import cv2

        order = square_HWC[..., ::-1] if swap else square_HWC
        self.network.setInput(cv2.dnn.blobFromImage(np.ascontiguousarray(order), scale, None, mean))
        return list(self.network.forward(self.network.getUnconnectedOutLayersNames()))


class DbDetector(TextDetector):
    """Differentiable binarization (arXiv 1911.08947): OpenCV's DB networks, and the detectors of PP-OCR as ONNX."""

    form = "an ONNX file of DB, such as text_detection_en_ppocrv3_2023may.onnx of OpenCV's model zoo"

    def find_regions(self, square_HWC: np.ndarray) -> Sequence[np.ndarray]:
        """Returns the smallest rectangle around each connected region, grown back to the size of the text."""
        import cv2

        outputs = self._run(square_HWC, 1 / 255, DB_MEAN, swap=True)
        if len(outputs) != 1 or outputs[0].shape != (1, 1, self.side, self.side):
            raise ValueError(f"it returns {[output.shape for output in outputs]}")
        probability_HW = outputs[0][0, 0]
        text_HW = (probability_HW > DB_THRESHOLD).astype(np.uint8)
        regions = []
        for outline in cv2.findContours(text_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            inside = np.zeros_like(text_HW)
            cv2.drawContours(inside, [outline], -1, 1, -1)
            if probability_HW[inside > 0].mean() < self.min_confidence:
                continue
            centre, (width, height), angle = cv2.minAreaRect(outline)
            more = DB_UNCLIP * width * height / max(1.0, width + height)  # twice area x ratio / perimeter
            regions.append(cv2.boxPoints((centre, (width + more, height + more), angle)))
        return regions


class EastDetector(TextDetector):
    """EAST (arXiv 1704.03155): OpenCV's ``frozen_east_text_detection.pb``."""

    form = "a file of EAST, such as frozen_east_text_detection.pb"

    def find_regions(self, square_HWC: np.ndarray) -> Sequence[np.ndarray]:
        """Returns rotated boxes, of overlapping ones the most probable."""
        import cv2

        outputs = sorted(self._run(square_HWC, 1.0, EAST_MEAN, swap=False), key=lambda output: output.size)
        cells = self.side // EAST_CELL
        if [output.shape for output in outputs] != [(1, 1, cells, cells), (1, 5, cells, cells)]:
            raise ValueError(f"it returns {[output.shape for output in outputs]}")
        score_HW, geometry_5HW = outputs[0][0, 0], outputs[1][0]
        rows, columns = np.nonzero(score_HW >= self.min_confidence)
        top, right, bottom, left, angle = geometry_5HW[:, rows, columns]
        cos, sin = np.cos(angle), np.sin(angle)
        across, along = (right - left) / 2, (bottom - top) / 2  # from the cell to the centre of its box
        x = columns * EAST_CELL + cos * across + sin * along
        y = rows * EAST_CELL - sin * across + cos * along
        sizes = zip(left + right, top + bottom, strict=True)
        boxes = [
            ((float(cx), float(cy)), (float(width), float(height)), float(turned))
            for cx, cy, (width, height), turned in zip(x, y, sizes, -np.degrees(angle), strict=True)
        ]
        scores = score_HW[rows, columns].tolist()
        kept = cv2.dnn.NMSBoxesRotated(boxes, scores, self.min_confidence, EAST_SUPPRESSION) if boxes else ()
        return [cv2.boxPoints(boxes[number]) for number in kept]


# A new detector is one class and one line here.
TEXT_DETECTORS: dict[str, type[TextDetector]] = {"db": DbDetector, "east": EastDetector}


class TextConfig(Config):
    """How text in images is found."""

    model: str = Field(description="file of the network, .onnx or .pb, on every machine of the cluster")
    detector: Annotated[str, NameIn(TEXT_DETECTORS)] = Field(
        default="db", description="kind of the network; db: differentiable binarization, PP-OCR's too; east: EAST"
    )
    side: int = Field(
        default=320,
        ge=STRIDE,
        multiple_of=STRIDE,
        description="pixels that the longer side is scaled to; more finds smaller text and takes longer",
    )
    min_confidence: float = Field(default=0.5, gt=0, le=1, description="of a region of text")


def find_text_model_files(config: TextConfig) -> list[str]:
    """Returns the detector's file; raises UserError for a missing one."""
    if not Path(config.model).is_file():
        raise UserError(
            f"annotate.text.model={config.model}: no such file; give {TEXT_DETECTORS[config.detector].form}"
        )
    return [config.model]


def load_text_detector(config: TextConfig) -> TextDetector:
    """Loads the detector that ``config`` names; raises UserError for a file that it cannot use."""
    return TEXT_DETECTORS[config.detector].load(config)
