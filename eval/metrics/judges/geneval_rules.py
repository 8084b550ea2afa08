"""GenEval's rules: whether detected objects are those of a prompt (Ghosh et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.metrics.judges.base import JudgeImages
from eval.metrics.judges.coco_names import to_coco_name
from eval.metrics.judges.detectors import CONFIDENCE, Box, Detect, DetectedObject

if TYPE_CHECKING:
    from eval.clip.scorer import ClipScorer

# The paper's settings.
COUNTING_CONFIDENCE, MAX_OBJECTS = 0.9, 16
OVERLAP = 0.1  # share of both objects' sizes within which their centres count as aligned
BACKGROUND = 0x99  # grey that hides what is not the object when its colour is told
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
NameColours = Callable[[np.ndarray, Sequence[DetectedObject], str], list[str]]


def make_judge(metadata: Mapping[str, Mapping[str, Any]], detect: Detect, name_colours: NameColours) -> JudgeImages:
    """Returns the judge of images; prompts that are not of the protocol get no verdict."""

    def judge(images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Mapping[str, float]]:
        found: list[Mapping[str, float]] = []
        for image, prompt in zip(images, prompts, strict=True):
            entry = metadata.get(prompt)
            if entry is None:
                found.append({})
                continue
            least = COUNTING_CONFIDENCE if entry["tag"] == "counting" else CONFIDENCE
            objects = {
                name: [item for item in items if item.confidence > least][:MAX_OBJECTS]
                for name, items in detect(image).items()
            }
            found.append({"correct": float(is_correct(image, objects, entry, name_colours))})
        return found

    return judge


def is_correct(
    image: np.ndarray,
    objects: Mapping[str, Sequence[DetectedObject]],
    entry: Mapping[str, Any],
    name_colours: NameColours,
) -> bool:
    """Whether an image shows what an entry of the prompt file says.

    ``objects`` are by COCO's class, surest first. Of each class the surest ones are judged, as many as are asked for.
    """
    groups: list[Sequence[DetectedObject]] = []
    for wanted in entry["include"]:
        name, count = str(wanted["class"]), int(wanted["count"])
        group = objects.get(to_coco_name(name), [])[:count]
        if len(group) < count:
            return False
        if "color" in wanted and name_colours(image, group, name).count(wanted["color"]) < count:
            return False
        if "position" in wanted:
            relation, target = wanted["position"]
            pairs = [(one, other) for one in group for other in groups[int(target)]]
            if not all(relation in find_relations(one.box, other.box) for one, other in pairs):
                return False
        groups.append(group)
    unwanted = entry.get("exclude") or []
    return all(len(objects.get(to_coco_name(i["class"]), [])) < i["count"] for i in unwanted)


def find_relations(one: Box, other: Box) -> set[str]:
    """Returns where ``one`` is from ``other``: left of, right of, above, below; up to two of them.

    Centres that differ by less than a tenth of the objects' summed sizes count as aligned on that axis.
    """
    corners = np.asarray([one, other], np.float64).reshape(2, 2, 2)
    offset_2 = corners[0].mean(axis=0) - corners[1].mean(axis=0)
    sizes_2 = np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    beyond_2 = np.maximum(np.abs(offset_2) - OVERLAP * sizes_2, 0) * np.sign(offset_2)
    if np.abs(beyond_2).max() < 1e-3:
        return set()
    dx, dy = (beyond_2 / np.linalg.norm(offset_2)).tolist()
    named = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in named.items() if holds}


def colour_namer(scorer: ClipScorer) -> NameColours:
    """Returns a function that names the colour of each object by the CLIP's similarity with three templates."""

    @cache
    def colour_features(name: str) -> np.ndarray:
        texts = [template.format(colour, name) for colour in COLOURS for template in TEMPLATES]
        features_CD = scorer.text_features(texts).reshape(len(COLOURS), len(TEMPLATES), -1).mean(axis=1)
        return features_CD / np.linalg.norm(features_CD, axis=1, keepdims=True)

    def name_colours(image: np.ndarray, objects: Sequence[DetectedObject], name: str) -> list[str]:
        crops = [_crop(hide_background(image, item), item.box) for item in objects]
        best = (scorer.image_features(crops) @ colour_features(name.replace("_", " ")).T).argmax(axis=1)
        return [COLOURS[index] for index in best.tolist()]

    return name_colours


def hide_background(image: np.ndarray, item: DetectedObject) -> np.ndarray:
    """Returns the image with `BACKGROUND` where the object is not, if the detector gave a mask of it."""
    if item.mask_HW is None:
        return image
    return np.where(item.mask_HW[..., None], image, np.uint8(BACKGROUND))


def _crop(image: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = (round(value) for value in box)
    height, width = image.shape[:2]
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return image[top : max(bottom, top + 1), left : max(right, left + 1)]
