"""Object detectors of transformers, from local folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.metrics.judges.preference import refuse_model

if TYPE_CHECKING:
    from eval.metrics.judges.config import JudgeConfig

CONFIDENCE = 0.3  # least of an object that counts, as in GenEval
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Detect = Callable[[np.ndarray], "dict[str, list[DetectedObject]]"]  # image -> class -> objects, surest first


@dataclass(frozen=True)
class DetectedObject:
    """An object that a detector found."""

    box: Box
    confidence: float


def load_detector(config: JudgeConfig, device: str, needs: str) -> Detect:
    """Loads an object detector of transformers."""
    import torch
    from PIL import Image

    from dataprep.io.model_imports import import_transformers

    transformers = import_transformers()
    try:
        model = transformers.AutoModelForObjectDetection.from_pretrained(config.model, local_files_only=True)
        processor = transformers.AutoImageProcessor.from_pretrained(config.model, local_files_only=True)
    except Exception as error:  # transformers raises many types on a folder that it cannot load
        raise refuse_model(config, error, needs) from error
    model = model.to(device).eval().requires_grad_(False)
    labels = {int(number): str(name).lower() for number, name in model.config.id2label.items()}

    @torch.inference_mode()
    def detect(image: np.ndarray) -> dict[str, list[DetectedObject]]:
        inputs = processor(images=[Image.fromarray(image)], return_tensors="pt").to(device)
        sizes = [image.shape[:2]]
        (found,) = processor.post_process_object_detection(model(**inputs), threshold=CONFIDENCE, target_sizes=sizes)
        order = found["scores"].argsort(descending=True, stable=True).tolist()
        objects: dict[str, list[DetectedObject]] = defaultdict(list)
        for place in order:
            left, top, right, bottom = found["boxes"][place].tolist()
            item = DetectedObject((left, top, right, bottom), float(found["scores"][place]))
            objects[labels[int(found["labels"][place])]].append(item)
        return dict(objects)

    return detect
