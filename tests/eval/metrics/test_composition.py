"""The checker is right on fresh drawings at every size, also noisy and blurred, and notices each wrong attribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest

from dataprep.synthetic import grammar
from dataprep.synthetic.grammar import ATTRIBUTES, Claim, find_stated_attributes, parse_caption, sample_claim
from dataprep.synthetic.renderer import draw_scene
from eval.metrics.composition import check_image, find_shapes, judge_shapes, measure_chance, sum_checks

cv2.setNumThreads(1)
COUNT = 300


def scenes(size: int) -> list[tuple[np.ndarray, Claim]]:
    rng = np.random.default_rng(21)
    claims = [sample_claim(rng, held_out=index % 4 == 0) for index in range(COUNT)]
    return [(draw_scene(claim, np.random.default_rng([1, index]), size), claim) for index, claim in enumerate(claims)]


def sum_all(examples: Sequence[tuple[np.ndarray, Claim]]) -> dict[str, dict[str, float]]:
    return sum_checks([check_image(image_HWC, claim) for image_HWC, claim in examples])


def noisy(image_HWC: np.ndarray, sigma: float) -> np.ndarray:
    noise_HWC = np.random.default_rng(3).normal(0, sigma, image_HWC.shape)
    return np.clip(image_HWC + noise_HWC, 0, 255).astype(np.uint8)


def through_16(image_HWC: np.ndarray) -> np.ndarray:
    tiny = cv2.resize(image_HWC, (16, 16), interpolation=cv2.INTER_AREA)
    return cv2.resize(tiny, (64, 64), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("size", [64, 256])
def test_ceiling_on_fresh_drawings(size: int) -> None:
    result = sum_all(scenes(size))
    assert set(result) == {*ATTRIBUTES, "all"}
    assert all(entry["accuracy"] >= 0.99 for entry in result.values()), result
    assert result["count"]["n"] == COUNT > result["position"]["n"] > 0


@pytest.mark.parametrize(
    ("size", "spoil"),
    [
        (64, lambda image: noisy(image, 15)),
        (64, lambda image: cv2.GaussianBlur(image, (0, 0), 1.2)),
        (64, through_16),
        (256, lambda image: noisy(cv2.GaussianBlur(image, (0, 0), 3.0), 25)),
    ],
    ids=["noise", "blur", "16x16", "noise and blur at 256"],
)
def test_ceiling_on_spoilt_drawings(size: int, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    result = sum_all([(spoil(image), claim) for image, claim in scenes(size)])
    assert all(entry["accuracy"] >= 0.98 for entry in result.values()), result


def test_each_wrong_attribute_is_noticed_and_no_other() -> None:
    rng, tried = np.random.default_rng(2), Counter[str]()
    for image, claim in scenes(64)[:150]:
        found = find_shapes(image)
        for name, wrong in one_wrong(claim, rng):
            result = judge_shapes(found, wrong)
            assert not result[name] and not result["all"], (claim, wrong)
            tried[name] += 1
            if name != "colour":  # with a wrong colour, an object may pass for one of the other group
                assert all(right for other, right in result.items() if other not in (name, "all")), (claim, wrong)
    assert set(tried) == set(ATTRIBUTES)


def one_wrong(claim: Claim, rng: np.random.Generator) -> list[tuple[str, Claim]]:
    """Claims that differ from ``claim`` in one attribute that it states."""
    values = {
        "colour": grammar.COLOURS,
        "shape": grammar.SHAPES,
        "size": grammar.SIZES,
        "texture": ("striped", "hollow"),
        "count": grammar.COUNTS,
        "position": grammar.POSITIONS,
        "relation": grammar.RELATIONS,
    }
    wrong = []
    for name in sorted(find_stated_attributes(claim) - ({"count"} if claim.position else set())):
        spot = claim if name in ("position", "relation") else claim.first
        now = getattr(spot, name)
        if now is None or now == "solid":
            continue
        others = [value for value in values[name] if value != now]
        value = others[int(rng.integers(len(others)))]
        dump = claim.model_dump()
        (dump if spot is claim else dump["first"])[name] = value
        wrong.append((name, Claim.model_validate(dump)))
    return wrong


def test_relations_bind_attributes_to_their_object() -> None:
    claim = parse_caption("a small red circle left of a small blue square")
    swapped = parse_caption("a small blue circle left of a small red square")
    assert claim and swapped
    result = check_image(draw_scene(claim, np.random.default_rng(0), 64), swapped)
    assert not result["all"] and not (result["shape"] and result["relation"])


@pytest.mark.parametrize("fill", ["white", "black", "noise", "red"])
def test_images_without_objects(fill: str) -> None:
    claim = parse_caption("a small red circle on the left")
    assert claim
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    plain = {"white": (255, 255, 255), "black": (0, 0, 0), "red": (218, 38, 42)}
    image = noise if fill == "noise" else np.full((64, 64, 3), plain[fill], np.uint8)
    result = check_image(image, claim)
    assert set(result) == {"count", "colour", "shape", "size", "position", "all"} and not any(result.values())


def test_many_objects_are_handled() -> None:
    image = np.full((64, 64, 3), 245, np.uint8)
    for y in range(4, 60, 14):
        for x in range(4, 60, 14):
            image[y : y + 9, x : x + 9] = (218, 38, 42)
    for text in ("a red square", "a red square left of a blue square"):
        claim = parse_caption(text)
        assert claim and not check_image(image, claim)["count"]


def test_wrong_image_format_is_refused() -> None:
    claim = parse_caption("a red circle")
    assert claim
    for image in (np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64, 4), np.uint8)):
        with pytest.raises(ValueError, match="give uint8"):
            check_image(image, claim)


def test_chance_lies_between_zero_and_the_ceiling() -> None:
    examples = scenes(64)[:80]
    level = measure_chance(examples)
    assert 0.1 < level["position"] < 0.4 and level["all"] < 0.1
    assert all(level[name] < entry["accuracy"] for name, entry in sum_all(examples).items())
    assert measure_chance(examples[:1]) == {} and sum_all([]) == {}


def test_a_colour_that_the_corpus_lacks_is_read_where_it_is_claimed_and_nothing_else_changes() -> None:
    rng = np.random.default_rng(5)
    results = []
    for number in range(60):
        claim = grammar.recolour_claim(grammar.sample_claim(rng), rng)
        image = draw_scene(claim, np.random.default_rng(number), 64)
        results.append(check_image(image, claim))
        plain = claim.first.model_copy(update={"colour": "green"})
        other = claim.model_copy(update={"first": plain, "second": None, "relation": None})
        if claim.second is None:
            assert not check_image(image, other, grammar.WIDE_PALETTE)["colour"]
    assert sum_checks(results)["all"]["accuracy"] > 0.95
