"""The invisible mark: read after PNG and JPEG, not there in other pictures, hardly to be seen."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dataprep.drawing import draw
from dataprep.grammar import draw_claim
from dataprep.schema import UserError
from eval.watermark import has_mark, mark


def pictures(size: int) -> list[np.ndarray]:
    """Scenes, noise, and the two flat pictures that leave no room on one side."""
    rng = np.random.default_rng(0)
    scenes = [draw(draw_claim(rng), rng, size) for _ in range(12)]
    noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    flat = [np.full((size, size, 3), value, np.uint8) for value in (0, 255)]
    return [*scenes, noise, *flat]


def stored(image: np.ndarray, kind: str, **options: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


@pytest.mark.parametrize("size", [32, 64, 256])
def test_it_is_read_back_after_png_and_jpeg(size: int) -> None:
    for image in pictures(size):
        marked = mark(image, "imagen-ray")
        assert has_mark(stored(marked, "PNG"), "imagen-ray")
        assert has_mark(stored(marked, "JPEG", quality=90), "imagen-ray")
        assert not has_mark(image, "imagen-ray") and not has_mark(marked, "another")
        error = np.square(marked.astype(float) - image).mean()
        assert 10 * np.log10(255**2 / error) > 37  # decibels; the flat ones, moved off black and white, are the worst


def test_pictures_without_one_have_none() -> None:
    rng = np.random.default_rng(1)
    assert not any(has_mark(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "imagen-ray") for _ in range(200))


def test_too_small_a_picture() -> None:
    small = np.zeros((31, 64, 3), np.uint8)
    with pytest.raises(UserError, match="picture of 64x31 is too small for a watermark"):
        mark(small, "imagen-ray")
    assert not has_mark(small, "imagen-ray")
