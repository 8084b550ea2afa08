"""Aspect buckets: the shapes in which images are stored if they are not all cropped to squares.

A bucket is named by width:height, such as "4:3". At the smallest resolution its shape has about that ratio, at most as
many pixels as the square, and sides that are multiples of what the backbone requires. At a larger resolution it is an
integer multiple of that shape, so that a super-resolution stage scales one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

from dataprep.io.pack_format import SQUARE, ImageShape

PIXEL_LOSS_WEIGHT = 0.5  # cost of losing a share of the pixels, relative to stretching by the same share


def compute_bucket_shapes(names: Sequence[str], size: int, smallest: int, multiple: int) -> dict[str, ImageShape]:
    """Returns the shape of each bucket at resolution ``size``, a multiple of ``smallest``; a square without buckets.

    Raises ValueError for two buckets of the same shape.
    """
    if not names:
        return {SQUARE: (size, size)}
    found: dict[str, ImageShape] = {}
    for name in names:
        height, width = _choose_shape(_parse_ratio(name), smallest, multiple)
        shape = height * size // smallest, width * size // smallest
        if twin := next((other for other, taken in found.items() if taken == shape), None):
            raise ValueError(
                f"{name} and {twin} are both {width}x{height} at resolution {smallest} in steps of {multiple}; "
                "leave one out, or lower aspect_multiple"
            )
        found[name] = shape
    return found


def find_nearest_bucket(shapes: Mapping[str, ImageShape], height: int, width: int) -> str:
    """Returns the bucket whose aspect ratio is nearest to the image's on a logarithmic scale; of ties the first."""
    return min(shapes, key=lambda name: abs(log(shapes[name][1] / shapes[name][0] * height / width)))


def _parse_ratio(name: str) -> float:
    width, _, height = name.partition(":")
    return int(width) / int(height)


def _choose_shape(ratio: float, smallest: int, multiple: int) -> ImageShape:
    """Returns (height, width) in multiples, within the pixels of the square: near ``ratio``, losing few pixels."""

    def cost(shape: ImageShape) -> float:
        height, width = shape
        return abs(log(width / height / ratio)) + PIXEL_LOSS_WEIGHT * log(smallest * smallest / (height * width))

    possible = []
    for height in range(multiple, smallest * smallest // multiple + 1, multiple):
        below = int(height * ratio) // multiple * multiple
        widest = smallest * smallest // height // multiple * multiple
        possible += [(height, width) for width in {min(below, widest), min(below + multiple, widest)} if width > 0]
    if not possible:
        raise ValueError(f"no shape in steps of {multiple} fits resolution {smallest}; lower aspect_multiple")
    return min(possible, key=cost)
