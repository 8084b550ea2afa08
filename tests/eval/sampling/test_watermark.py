"""The watermark is read back after PNG and JPEG, is not found in other images, and is hardly visible."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dataprep.io.errors import UserError
from dataprep.synthetic.grammar import sample_claim
from dataprep.synthetic.renderer import draw_scene
from eval.sampling.watermark import add_watermark, has_watermark


def make_images(size: int) -> list[np.ndarray]:
    """Scenes, noise, and the two flat images that are at the end of the range."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(sample_claim(rng), rng, size) for _ in range(12)]
    noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    flat = [np.full((size, size, 3), value, np.uint8) for value in (0, 255)]
    return [*scenes, noise, *flat]


def stored(image: np.ndarray, kind: str, **options: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


@pytest.mark.parametrize("size", [32, 64, 256])
def test_watermark_survives_png_and_jpeg(size: int) -> None:
    for image in make_images(size):
        marked = add_watermark(image, "imagen-ray")
        assert has_watermark(stored(marked, "PNG"), "imagen-ray")
        assert has_watermark(stored(marked, "JPEG", quality=90), "imagen-ray")
        assert not has_watermark(image, "imagen-ray") and not has_watermark(marked, "another")
        error = np.square(marked.astype(float) - image).mean()
        assert 10 * np.log10(255**2 / error) > 37  # decibels; lowest on the flat images, which move off black and white


def test_images_without_a_watermark_have_none() -> None:
    rng = np.random.default_rng(1)
    assert not any(has_watermark(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "imagen-ray") for _ in range(200))


def test_small_images_are_refused() -> None:
    small = np.zeros((31, 64, 3), np.uint8)
    with pytest.raises(UserError, match="image of 64x31 is too small for a watermark"):
        add_watermark(small, "imagen-ray")
    assert not has_watermark(small, "imagen-ray")
