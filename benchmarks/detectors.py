"""CPU time of the detectors of `annotate`, for the assumptions of `imagen-ray plan`.

    python -m benchmarks.detectors PHOTOS [--db FILE] [--east FILE] [--yunet FILE]

PHOTOS is a folder of photographs as PNG or JPEG; the files are detectors' networks, of which those not given are
not measured. Each photograph is scaled to two shorter sides and searched by one thread, the median of three times. What
counts is the thread's CPU time per pixel that is searched (`pipeline/planner/detectors.py`), over all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from benchmarks.result import make_claim, write_result
from dataprep.images.faces import FacesConfig, load_detector
from dataprep.images.text_area import TextConfig, load_text_detector
from pipeline.planner.catalog import Assumptions
from pipeline.planner.detectors import CASCADE_WINDOW, list_face_speeds, list_text_speeds

SIDES = (256, 768)
TIMES = 3
WITHIN = 1.5  # target: measured and assumed speed differ by at most this factor


def measure_ms(detect: Callable[[np.ndarray], Any], image_HWC: np.ndarray) -> float:
    """Returns milliseconds of one thread."""
    times = []
    for _ in range(TIMES):
        began = time.thread_time()
        detect(image_HWC)
        times.append(1e3 * (time.thread_time() - began))
    return median(times)


def list_detectors(options: argparse.Namespace) -> dict[str, tuple[Callable[[np.ndarray], Any], float, float]]:
    """Returns detector, smallest side of a face that it shrinks images for, and side of its input; 0 for none."""
    found: dict[str, tuple[Callable[[np.ndarray], Any], float, float]] = {}
    cascade = FacesConfig()
    found["cascade"] = load_detector(cascade).detect, cascade.min_side, 0
    if options.yunet:
        found["yunet"] = load_detector(FacesConfig(detector="yunet", model=options.yunet)).detect, 0, 0
    for name in ("db", "east"):
        if model := getattr(options, name):
            config = TextConfig(detector=name, model=model)
            found[name] = load_text_detector(config).measure, 0, config.side
    return found


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    for name in ("db", "east", "yunet"):
        parser.add_argument(f"--{name}", metavar="FILE")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    assumed = list_face_speeds(Assumptions()) | list_text_speeds(Assumptions())
    rows, claims = [], []
    for name, (detect, min_side, square) in list_detectors(options).items():
        for path in sorted(path for path in options.photos.iterdir() if path.suffix in (".png", ".jpg")):
            image_HWC = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            for side in SIDES:
                scale = side / min(image_HWC.shape[:2])
                how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
                scaled_HWC = cv2.resize(image_HWC, None, fx=scale, fy=scale, interpolation=how)
                searched = scaled_HWC[..., 0].size * (CASCADE_WINDOW / max(CASCADE_WINDOW, min_side * side)) ** 2
                row = {"detector": name, "photo": path.name, "side": side, "pixels": round(square**2 or searched)}
                rows.append(row | {"ms": round(measure_ms(detect, scaled_HWC), 2)})
                print(rows[-1], flush=True)
        own = [row for row in rows if row["detector"] == name]
        speed = sum(row["pixels"] for row in own) / sum(row["ms"] for row in own) / 1e3
        claims.append(make_claim(f"{name}: million pixels per second and core", speed, "", assumed[name] / WITHIN))
    write_result("detectors", rows, claims, ("opencv-python-headless",))


if __name__ == "__main__":
    main()
