"""Perceptual hash."""

from __future__ import annotations

import imagehash
from PIL import Image

from dataprep.images.perceptual_hash import compute_perceptual_hash
from tests.helpers.images import picture


def test_perceptual_hash_ignores_size_and_encoding() -> None:
    image = picture(3, 200, 200)
    small = picture(3, 90, 90)
    assert (compute_perceptual_hash(image) ^ compute_perceptual_hash(small)).bit_count() <= 4
    assert (compute_perceptual_hash(image) ^ compute_perceptual_hash(picture(4))).bit_count() > 10


def test_perceptual_hash_is_what_imagehash_prints() -> None:
    image = picture(5, 120, 80)
    assert f"{compute_perceptual_hash(image):016x}" == str(imagehash.phash(Image.fromarray(image)))
