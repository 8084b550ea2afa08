"""Captions with lengths as they are on the web, and pictures with a spectrum like photographs: drawn, none fetched.

Lengths are log-normal: half of the captions have at most 11 words, one in ten more than 25, one in a hundred more than
about 50, with one in 500 a paragraph of up to 400. LAION's and COYO's alt texts are about so (median 9 to 11 words, a
long tail). Words are invented, their frequency is Zipf's. One in eight captions is an earlier one again, as boilerplate
and reposts make it.
"""

from __future__ import annotations

import cv2
import numpy as np

MEDIAN_WORDS, SPREAD = 11, 0.65
PARAGRAPHS, REPEATS = 1 / 500, 1 / 8


def lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """Words of each caption, int64, at least 1."""
    words = np.exp(rng.normal(np.log(MEDIAN_WORDS), SPREAD, count))
    paragraph = rng.random(count) < PARAGRAPHS
    return np.maximum(1, np.where(paragraph, rng.integers(100, 401, count), words)).astype(np.int64)


def captions(count: int, vocabulary: int, rng: np.random.Generator) -> list[str]:
    """Captions of words ``w0`` to ``w<vocabulary - 1>``."""
    share = 1 / np.arange(1, vocabulary + 1)
    texts: list[str] = []
    for length in lengths(count, rng):
        if texts and rng.random() < REPEATS:
            texts.append(texts[int(rng.integers(len(texts)))])
        else:
            texts.append(" ".join(f"w{word}" for word in rng.choice(vocabulary, length, p=share / share.sum())))
    return texts


def photo(rng: np.random.Generator, size: int) -> np.ndarray:
    """uint8 RGB (size, size, 3): noise of all scales, each octave half as strong as the one below it."""
    out = np.full((size, size, 3), 128, np.float32)
    side, strength = 2, 50.0
    while side <= size:
        out += cv2.resize(rng.normal(0, strength, (side, side, 3)).astype(np.float32), (size, size))
        side, strength = side * 2, strength / 2
    return np.clip(out, 0, 255).astype(np.uint8)
