"""Which captions of an image to train on, and how often each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

CAPTION = "caption"  # the caption that came with the image
ONE_CAPTION = {CAPTION: 1.0}


def _spread_evenly(value: Any) -> Any:
    """Returns a list of columns as equal weights of these and of the image's own caption."""
    if not isinstance(value, list | tuple):
        return value
    return dict.fromkeys([CAPTION, *value], 1.0)


def _check_weights(weights: dict[str, float]) -> dict[str, float]:
    if not weights:
        raise ValueError("no caption is left to train on; give at least one column, such as caption: 1")
    return weights


CaptionWeights = Annotated[
    dict[str, Annotated[float, Field(gt=0)]],
    BeforeValidator(_spread_evenly),
    AfterValidator(_check_weights),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}},
                {"type": "array", "items": {"type": "string"}},
            ]
        }
    ),
]
"""Column -> weight. A list of columns means these and `CAPTION`, all equally often."""


def without_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the same captions with equal weights: what a file with all of them depends on."""
    return dict.fromkeys(weights, 1.0)
