"""Aspect buckets: their shapes and the choice of a bucket."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataprep.images.aspect_buckets import compute_bucket_shapes, find_nearest_bucket
from dataprep.images.resize import resize_to_shape
from dataprep.io.pack_format import SQUARE
from dataprep.pack_config import PackConfig
from tests.helpers.images import picture

NAMES = ("1:1", "4:3", "3:4", "16:9", "9:16")


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([16, 32, 64]), st.sampled_from([1, 4, 8]))
def test_a_shape_is_in_steps_no_larger_than_the_square_and_grows_evenly(
    wide: int, high: int, smallest: int, multiple: int
) -> None:
    name = f"{wide}:{high}"
    height, width = compute_bucket_shapes([name], smallest, smallest, multiple)[name]
    assert height % multiple == 0 and width % multiple == 0 and height * width <= smallest**2
    assert compute_bucket_shapes([name], 4 * smallest, smallest, multiple)[name] == (4 * height, 4 * width)
    if multiple == 1 and smallest == 64:
        assert abs(np.log(width / height * high / wide)) < 0.1


def test_shapes_at_64_pixels() -> None:
    expected = {"1:1": (64, 64), "4:3": (56, 72), "3:4": (72, 56), "16:9": (48, 80), "9:16": (80, 48)}
    assert compute_bucket_shapes(NAMES, 64, 64, 8) == expected
    assert compute_bucket_shapes((), 64, 16, 8) == {SQUARE: (64, 64)}


def test_an_image_goes_to_the_nearest_bucket() -> None:
    shapes = compute_bucket_shapes(NAMES, 64, 64, 8)
    pictures = {(100, 100): "1:1", (100, 128): "4:3", (100, 300): "16:9", (900, 100): "9:16", (110, 100): "1:1"}
    for (height, width), name in pictures.items():
        assert find_nearest_bucket(shapes, height, width) == name
    assert find_nearest_bucket({SQUARE: (64, 64)}, 10, 900) == SQUARE


@pytest.mark.parametrize("crop", ["centre", "squash"])
def test_an_image_takes_the_shape_of_its_bucket(crop: str) -> None:
    image = picture(0, 120, 90)
    assert resize_to_shape(image, (48, 80), crop).shape == (48, 80, 3)
    assert np.array_equal(resize_to_shape(image, (90, 120), crop), image)
    if crop == "centre":  # of 120 x 90 the middle 72 rows are 80:48
        assert np.array_equal(resize_to_shape(image, (72, 120), crop), image[9:81])


def test_impossible_buckets_are_named() -> None:
    with pytest.raises(ValidationError, match="not a multiple of 16, the smallest"):
        PackConfig(resolutions=(16, 24), aspects=("4:3",))
    with pytest.raises(ValidationError, match="no shape in steps of 32 fits resolution 16"):
        PackConfig(resolutions=(16, 64), aspects=("1:1",), aspect_multiple=32)
