"""Aspect buckets: the few shapes in which pictures are stored where they are not all cut to squares.

A bucket is named by its width to its height, such as "4:3". Its shape at the smallest resolution has about that ratio
and at most the square's pixels, in sides that are multiples of what a U-Net wants; at a larger resolution it is that
shape so many times, so that a super-resolution stage enlarges one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

from dataprep.schema import SQUARE, Shape

LOST = 0.5  # how a share of pixels fewer weighs against the same share of stretching


def bucket_shapes(names: Sequence[str], size: int, smallest: int, multiple: int) -> dict[str, Shape]:
    """The shape of each bucket at resolution ``size``, a multiple of ``smallest``; squares where there are no buckets.

    Raises ValueError for a bucket that has no shape of its own.
    """
    if not names:
        return {SQUARE: (size, size)}
    found: dict[str, Shape] = {}
    for name in names:
        height, width = _shape(_ratio(name), smallest, multiple)
        shape = height * size // smallest, width * size // smallest
        if twin := next((other for other, taken in found.items() if taken == shape), None):
            raise ValueError(
                f"{name} and {twin} are both {width}x{height} at resolution {smallest} in steps of {multiple}; "
                "leave one out, or lower aspect_multiple"
            )
        found[name] = shape
    return found


def nearest_bucket(shapes: Mapping[str, Shape], height: int, width: int) -> str:
    """The bucket whose ratio is nearest to a picture's, on a logarithmic scale; of two as near, the first."""
    return min(shapes, key=lambda name: abs(log(shapes[name][1] / shapes[name][0] * height / width)))


def _ratio(name: str) -> float:
    width, _, height = name.partition(":")
    return int(width) / int(height)


def _shape(ratio: float, smallest: int, multiple: int) -> Shape:
    """Height and width in multiples, together at most the square: near to ``ratio`` with few pixels fewer."""

    def cost(shape: Shape) -> float:
        height, width = shape
        return abs(log(width / height / ratio)) + LOST * log(smallest * smallest / (height * width))

    possible = []
    for height in range(multiple, smallest * smallest // multiple + 1, multiple):
        below = int(height * ratio) // multiple * multiple
        widest = smallest * smallest // height // multiple * multiple
        possible += [(height, width) for width in {min(below, widest), min(below + multiple, widest)} if width > 0]
    if not possible:
        raise ValueError(f"no shape in steps of {multiple} fits resolution {smallest}; lower aspect_multiple")
    return min(possible, key=cost)
