"""GenEval's rules on made-up detections, its prompt file, and a small detector of transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataprep.io.errors import UserError
from eval.clip.scorer import ClipScorer
from eval.metrics.judges.base import Verdict
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.judges.detectors import Box, DetectedObject, load_detector
from eval.metrics.judges.geneval import GenEvalJudge, read_metadata
from eval.metrics.judges.geneval_rules import (
    colour_namer,
    find_relations,
    hide_background,
    is_correct,
    make_judge,
)
from eval.metrics.judges.registry import JUDGES, find_protocol
from tests.helpers.foreign import save_detector, save_segmenter

IMAGE = np.zeros((100, 100, 3), np.uint8)
LEFT, RIGHT, LOW = (0.0, 40.0, 20.0, 60.0), (80.0, 40.0, 100.0, 60.0), (40.0, 80.0, 60.0, 100.0)
ENTRIES = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "two dogs",
    },
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"},
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
        "prompt": "a cat left of a dog",
    },
    {"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}], "prompt": "a computer mouse"},
]


@pytest.fixture
def protocol(tmp_path: Path) -> str:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, ENTRIES)))
    return str(path)


def found(box: Box, confidence: float = 0.95) -> DetectedObject:
    return DetectedObject(box, confidence)


def red(image: np.ndarray, objects: Sequence[DetectedObject], name: str) -> list[str]:
    return ["red"] * len(objects)


def blue(image: np.ndarray, objects: Sequence[DetectedObject], name: str) -> list[str]:
    return ["blue"] * len(objects)


@pytest.mark.parametrize(
    ("number", "objects", "right"),
    [
        (0, {"cat": [found(LEFT)]}, True),
        (0, {"dog": [found(LEFT)]}, False),
        (1, {"dog": [found(LEFT), found(RIGHT)]}, True),
        (1, {"dog": [found(LEFT)]}, False),
        (1, {"dog": [found(LEFT), found(RIGHT), found(LOW)]}, False),
        (2, {"cat": [found(LEFT)]}, True),
        (3, {"dog": [found(RIGHT)], "cat": [found(LEFT)]}, True),
        (3, {"dog": [found(LEFT)], "cat": [found(RIGHT)]}, False),
        (3, {"cat": [found(LEFT)]}, False),
        (4, {"mouse": [found(LEFT)]}, True),  # COCO's name
        (4, {"computer mouse": [found(LEFT)]}, False),
    ],
)
def test_rules(number: int, objects: dict[str, list[DetectedObject]], right: bool) -> None:
    assert is_correct(IMAGE, objects, ENTRIES[number], red) is right


def test_a_wrong_colour_is_wrong() -> None:
    assert not is_correct(IMAGE, {"cat": [found(LEFT)]}, ENTRIES[2], blue)


def test_relations_leave_room_for_the_objects_sizes() -> None:
    assert find_relations(LEFT, RIGHT) == {"left of"}
    assert find_relations(RIGHT, LEFT) == {"right of"}
    assert find_relations(LOW, LEFT) == {"right of", "below"}
    assert find_relations(LEFT, (2.0, 41.0, 22.0, 61.0)) == set()


def test_confidence_counts_more_for_counting() -> None:
    metadata = {str(entry["prompt"]): entry for entry in ENTRIES}
    unsure = {"dog": [found(LEFT, 0.5), found(RIGHT, 0.5)], "cat": [found(LEFT, 0.5)]}
    judge = make_judge(metadata, lambda image: unsure, red)
    values = judge([IMAGE] * 3, ["two dogs", "a photo of a cat", "a bird"])
    assert values == [{"correct": 0.0}, {"correct": 1.0}, {}]


def test_summary_is_the_mean_over_tasks(protocol: str) -> None:
    config = JudgeConfig(kind="geneval", model="detector", protocol=protocol)
    prompts = ["a photo of a cat"] * 3 + ["two dogs"]
    verdicts = [Verdict(p, {"correct": v}) for p, v in zip(prompts, (1.0, 1.0, 0.0, 0.0), strict=True)]
    summary = GenEvalJudge().summarize(config, verdicts)
    assert summary["overall"] == pytest.approx((2 / 3 + 0) / 2)
    assert summary["single_object"]["value"] == pytest.approx(2 / 3)
    assert summary["single_object"]["low"] < 2 / 3 < summary["single_object"]["high"]


class Flat:
    """A CLIP that knows red from blue by the mean colour, and by the words."""

    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        means = np.stack([image.reshape(-1, 3).mean(0) + 1e-3 for image in images])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        colours = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "green": (0.0, 1.0, 0.0)}
        return np.stack(
            [
                next((c for n, c in colours.items() if n in text.replace("-", " ").split()), (0.0, 1.0, 0.2))
                for text in texts
            ]
        )


def test_colours_are_those_of_the_objects_crops() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, :20] = (255, 0, 0)
    image[40:60, 80:] = (0, 0, 255)
    scorer: Any = Flat()
    name = colour_namer(scorer)
    assert name(image, [found(LEFT), found(RIGHT), found((-5.0, 45.0, 10.0, 50.0))], "cat") == ["red", "blue", "red"]


def test_masks_hide_what_is_not_the_object() -> None:
    """A blue frame around a red object is most of its box."""
    image = np.full((100, 100, 3), (0, 0, 255), np.uint8)
    mask_HW = np.zeros((100, 100), bool)
    mask_HW[45:55, 5:15] = True
    image[mask_HW] = (255, 0, 0)
    masked = DetectedObject(LEFT, 0.9, mask_HW)
    shown = hide_background(image, masked)
    assert (shown[mask_HW] == (255, 0, 0)).all() and (shown[~mask_HW] == 0x99).all()
    assert hide_background(image, found(LEFT)) is image
    scorer: Any = Flat()
    assert colour_namer(scorer)(image, [masked, found(LEFT)], "cat") == ["red", "blue"]


def test_a_network_of_instance_segmentation(tmp_path: Path, protocol: str) -> None:
    folder = save_segmenter(tmp_path / "segmenter")
    config = JudgeConfig(kind="geneval", model=folder, protocol=protocol)
    JUDGES["geneval"].check(config)
    detect = load_detector(config, "cpu", "")
    objects = [item for items in detect(np.full((40, 60, 3), 200, np.uint8)).values() for item in items]
    assert objects
    for item in objects:
        assert item.mask_HW is not None and item.mask_HW.shape == (40, 60) and item.mask_HW.dtype == bool
        left, top, right, bottom = map(int, item.box)
        inside = item.mask_HW[top:bottom, left:right]
        edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
        assert inside.sum() == item.mask_HW.sum() and all(edge.any() for edge in edges)
    assert JUDGES["geneval"].describe(config)["model"].startswith("mask2former detector")


def test_an_image_without_objects_has_no_masks(tmp_path: Path, protocol: str) -> None:
    folder = save_segmenter(tmp_path / "segmenter", none=9.0)
    config = JudgeConfig(kind="geneval", model=folder, protocol=protocol)
    assert load_detector(config, "cpu", "")(IMAGE) == {}


def test_a_detector_of_transformers(tmp_path: Path, protocol: str) -> None:
    folder = save_detector(tmp_path / "detector")
    config = JudgeConfig(kind="geneval", model=folder, protocol=protocol)
    files = JUDGES["geneval"].check(config)
    assert protocol in files and f"{folder}/model.safetensors" in files
    detect = load_detector(config, "cpu", "")
    objects = detect(np.full((40, 60, 3), 200, np.uint8))
    boxes = [item.box for items in objects.values() for item in items]
    assert objects.keys() <= {"cat", "dog", "mouse"} and boxes
    for items in objects.values():
        assert [item.confidence for item in items] == sorted((item.confidence for item in items), reverse=True)
    scorer: Any = Flat()
    judge = JUDGES["geneval"].load(config, scorer, "cpu")
    assert set(judge([IMAGE], ["two dogs"])[0]) == {"correct"}
    assert JUDGES["geneval"].describe(config)["model"] == "yolos detector (detector); colours by the scoring CLIP"


def test_wrong_inputs(tmp_path: Path, protocol: str) -> None:
    judge = JUDGES["geneval"]
    with pytest.raises(UserError, match=r"geneval=/none has no config\.json; give a folder of an object detector"):
        judge.check(JudgeConfig(kind="geneval", model="/none", protocol=protocol))
    birds = save_detector(tmp_path / "birds", ("bird", "cat", "mouse"))
    with pytest.raises(UserError, match=r"does not know 1 of the 3 classes \(dog\); give a detector of COCO's classes"):
        judge.check(JudgeConfig(kind="geneval", model=birds, protocol=protocol))
    (Path(birds) / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"geneval=.*birds cannot be loaded"):
        judge.load(JudgeConfig(kind="geneval", model=birds, protocol=protocol), object.__new__(ClipScorer), "cpu")
    with pytest.raises(UserError, match="geneval lacks protocol"):
        read_metadata(None)
    (tmp_path / "other.jsonl").write_text('{"prompt": "a cat"}\n')
    with pytest.raises(UserError, match=r"other\.jsonl: line 1 is none of GenEval's"):
        read_metadata(str(tmp_path / "other.jsonl"))


def test_the_prompt_file_is_recognised(tmp_path: Path, protocol: str) -> None:
    assert find_protocol(protocol) == "geneval"
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat"}\n')
    (tmp_path / "q.jsonl").write_text("a cat\n")
    names = ("p.txt", "p.jsonl", "q.jsonl", "missing.jsonl", "missing.csv")
    assert [find_protocol(str(tmp_path / name)) for name in names] == [None] * 5
