"""The judging of flags, with pictures and features that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.flags import (
    Flags,
    Prompt,
    draw_picture,
    judge_samples,
    make_claims,
    measure_distances,
    measure_recall,
    measure_retrieval,
    read_flags,
)
from eval.metrics.image_sets import judge_sample
from eval.metrics.samples_table import EVALUATE, JudgedSample
from eval.sampling.prompts import EvalPrompt

SIDE = 8
COLOURS = {"fr": 200, "gp": 202, "jp": 20, "de": 90}  # the first two look the same


def make_flags() -> Flags:
    images = np.stack([np.full((SIDE, SIDE, 3), value, np.uint8) for value in COLOURS.values()])
    return Flags(list(COLOURS), images, np.asarray([0, 0, 2, 3]))


def make_prompts(split: str) -> list[Prompt]:
    return [Prompt(f"flag: {code}", split, "en" if code != "jp" else "ja", code) for code in COLOURS]


class KnownScorer:
    """Gives features by hand: an image's by its grey level, a caption's as ``wrong`` says or those of its flag."""

    def __init__(self, wrong: dict[str, str]) -> None:
        self.wrong = wrong

    def image_features(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack([self.encode(int(image[0, 0, 0])) for image in images])

    def text_features(self, captions: list[str]) -> np.ndarray:
        codes = [caption.removeprefix("flag: ") for caption in captions]
        return np.stack([self.encode(COLOURS[self.wrong.get(code, code)]) for code in codes])

    def encode(self, value: int) -> np.ndarray:
        return np.asarray([np.cos(value / 100), np.sin(value / 100)])


def retrieve(wrong: dict[str, str]) -> dict[str, dict[str, Any]]:
    scorer: Any = KnownScorer(wrong)
    return {row["language"]: row for row in measure_retrieval(scorer, make_flags(), make_prompts("seen"))}


def test_distances_are_root_mean_squares() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8) for count in (3, 5))
    expected = np.sqrt(((one[:, None].astype(float) - other[None]) ** 2).mean(axis=(2, 3, 4)))
    np.testing.assert_allclose(measure_distances(one, other), expected)


def test_pictures_that_look_the_same_are_one(tmp_path: Path) -> None:
    for code, value in COLOURS.items():
        Image.new("RGB", (12, 12), (value, value, value)).save(tmp_path / f"{code}-en.png")
    flags = read_flags(tmp_path, list(COLOURS), SIDE)
    assert flags.look_N.tolist() == [0, 0, 2, 3]
    assert flags.images_NHWC.shape == (4, SIDE, SIDE, 3)


def test_chance_is_that_of_drawing_by_lot() -> None:
    rng = np.random.default_rng(0)
    right_QC = np.zeros((20_000, 10), bool)
    right_QC[:, :2] = True
    found = measure_recall(rng.random(right_QC.shape), right_QC)
    for top in (1, 5):
        assert abs(found[f"recall_at_{top}"].mean() - found[f"chance_at_{top}"].mean()) < 0.01


def test_constant_features_find_nothing() -> None:
    found = measure_recall(np.zeros((4, 10)), np.eye(4, 10, dtype=bool))
    assert found["recall_at_1"].sum() == found["recall_at_5"].sum() == 0


def test_a_name_of_a_flag_that_looks_the_same_is_right() -> None:
    rows = retrieve({"gp": "fr"})
    assert rows["all"]["text_to_image_recall_at_1"] == rows["all"]["image_to_text_recall_at_1"] == 1.0
    assert rows["all"]["text_to_image_chance_at_1"] == round(1 / 3, 4)  # three different pictures
    assert rows["all"]["n"] == 4 and rows["ja"]["n"] == 1


def test_a_caption_of_another_flag_is_wrong_in_its_language_alone() -> None:
    rows = retrieve({"jp": "de"})
    assert rows["ja"]["text_to_image_recall_at_1"] == 0.0 and rows["en"]["text_to_image_recall_at_1"] == 1.0
    assert rows["all"]["text_to_image_recall_at_1"] == 0.75


def test_samples_count_as_the_flag_that_is_nearest() -> None:
    values = [201, 190, 95, 80]  # the third is of de, where jp was asked for
    images = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in values]
    rows = {row["language"]: row for row in judge_samples(images, make_prompts("heldout"), make_flags())}
    assert rows["all"]["right"] == 0.75 and rows["en"]["right"] == 1.0 and rows["ja"]["right"] == 0.0
    assert rows["all"]["chance"] == (2 * 2 + 2 * 1) / 16  # two of four prompts ask for France's, one for Germany's
    assert rows["all"]["low"] < 0.75 < rows["all"]["high"]


def test_the_picture_has_a_column_for_each_flag() -> None:
    flags, prompts = make_flags(), make_prompts("seen") + make_prompts("heldout")
    prompts = [prompt._replace(prompt=f"{prompt.split} {prompt.code}") for prompt in prompts]
    samples = {prompt.prompt: make_sample(prompt) for prompt in prompts if prompt.code != "de"}
    drawn = np.asarray(draw_picture(flags, samples, prompts, 2))
    assert drawn.shape == (3 * SIDE, 2 * SIDE, 3)
    assert drawn[::SIDE, 0, 0].tolist() == [COLOURS["fr"], 255, 0]  # codes from the alphabet: fr, gp


def make_sample(prompt: Prompt) -> JudgedSample:
    """Returns a sample that is white for a caption seen, and black for one held out."""
    white = prompt.split == "seen"
    image = np.full((SIDE, SIDE, 3), 255 * white, np.uint8)
    item = EvalPrompt(prompt.prompt, prompt.split, prompt.language, None)
    return judge_sample(Image.fromarray(image), item, 0.0, role=EVALUATE, seed=0, index=0, chosen=True, stage="base")


def test_claims_compare_with_chance() -> None:
    recall = {f"{way}_recall_at_1": 0.5 for way in ("text_to_image", "image_to_text")}
    chance = {f"{way}_chance_at_1": 0.01 for way in ("text_to_image", "image_to_text")}
    rows: list[dict[str, Any]] = [{"measure": "run", "minutes": 61.0}]
    for split, right in (("seen", 0.9), ("heldout", 0.1)):
        rows.append({"measure": "retrieval", "split": split, "language": "all"} | recall | chance)
        rows.append({"measure": "samples", "split": split, "language": "all", "right": right})
        rows.append({"measure": "samples", "split": split, "language": "en", "right": 0.0})
    claims = make_claims(rows)
    assert [(entry["value"], entry["met"]) for entry in claims] == [
        *((50.0, True), (50.0, True), (0.9, True)),
        *((50.0, True), (50.0, True), (0.1, False)),
        (61.0, False),
    ]
