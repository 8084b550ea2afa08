"""Object detectors of transformers, from local folders: of boxes, or of masks (instance segmentation)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.metrics.judges.preference import read_model_config, refuse_model

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
    mask_HW: np.ndarray | None = field(default=None, compare=False)  # bool; None of a detector of boxes


def gives_masks(folder: str) -> bool:
    """Returns whether a model's folder is one of instance segmentation, such as Mask2Former's."""
    return any(
        name.endswith("ForUniversalSegmentation") for name in read_model_config(folder).get("architectures") or ()
    )


def load_detector(config: JudgeConfig, device: str, needs: str) -> Detect:
    """Loads an object detector of transformers."""
    import torch
    from PIL import Image

    from dataprep.io.model_imports import import_transformers, let_transformers_find_scipy

    transformers = import_transformers()
    masks = gives_masks(config.model)
    if masks:
        let_transformers_find_scipy()
    kind = transformers.AutoModelForUniversalSegmentation if masks else transformers.AutoModelForObjectDetection
    try:
        model = kind.from_pretrained(config.model, local_files_only=True)
        processor = transformers.AutoImageProcessor.from_pretrained(config.model, local_files_only=True)
    except Exception as error:  # transformers raises many types on a folder that it cannot load
        raise refuse_model(config, error, needs) from error
    model = model.to(device).eval().requires_grad_(False)
    labels = {int(number): str(name).lower() for number, name in model.config.id2label.items()}

    @torch.inference_mode()
    def detect(image: np.ndarray) -> dict[str, list[DetectedObject]]:
        inputs = processor(images=[Image.fromarray(image)], return_tensors="pt").to(device)
        outputs, size = model(**inputs), image.shape[:2]
        found = read_masks(processor, outputs, size) if masks else read_boxes(processor, outputs, size)
        objects: dict[str, list[DetectedObject]] = defaultdict(list)
        for label, item in sorted(found, key=lambda pair: -pair[1].confidence):
            objects[labels[label]].append(item)
        return dict(objects)

    return detect


def read_boxes(processor: Any, outputs: Any, size: tuple[int, int]) -> list[tuple[int, DetectedObject]]:
    """Returns label and object of every box in the outputs of a detector; ``size`` is the image's height and width."""
    (found,) = processor.post_process_object_detection(outputs, threshold=CONFIDENCE, target_sizes=[size])
    objects = []
    for box, label, confidence in zip(found["boxes"], found["labels"], found["scores"], strict=True):
        left, top, right, bottom = box.tolist()
        objects.append((int(label), DetectedObject((left, top, right, bottom), float(confidence))))
    return objects


def read_masks(processor: Any, outputs: Any, size: tuple[int, int]) -> list[tuple[int, DetectedObject]]:
    """As `read_boxes`, of a network of instance segmentation; an object's box is that of its mask."""
    (found,) = processor.post_process_instance_segmentation(
        outputs, threshold=CONFIDENCE, target_sizes=[size], return_binary_maps=True
    )
    objects = []
    for mask, item in zip(found["segmentation"], found["segments_info"], strict=False):
        mask_HW = mask.cpu().numpy() > 0.5
        rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        objects.append((int(item["label_id"]), DetectedObject(box, float(item["score"]), mask_HW)))
    return objects
