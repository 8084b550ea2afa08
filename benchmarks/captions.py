"""Synthetic captions with the lengths of web captions, and synthetic images with the spectrum of photographs.

Lengths are log-normal: half of the captions have at most 11 words, one in ten has more than 25, one in a hundred more
than about 50, and one in 500 is a paragraph of up to 400. The alt texts of LAION and COYO are similar (median 9 to 11
words, a long tail). Words are invented, with a Zipf distribution. One in eight captions repeats an earlier one, as
boilerplate and reposts do.
"""

from __future__ import annotations

import cv2
import numpy as np

MEDIAN_WORDS, SPREAD = 11, 0.65
PARAGRAPHS, REPEATS = 1 / 500, 1 / 8


def sample_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the number of words of each caption, int64 (count,), at least 1."""
    words = np.exp(rng.normal(np.log(MEDIAN_WORDS), SPREAD, count))
    paragraph = rng.random(count) < PARAGRAPHS
    return np.maximum(1, np.where(paragraph, rng.integers(100, 401, count), words)).astype(np.int64)


def make_captions(count: int, vocabulary: int, rng: np.random.Generator) -> list[str]:
    """Returns captions of the words ``w0`` to ``w<vocabulary - 1>``."""
    share = 1 / np.arange(1, vocabulary + 1)
    texts: list[str] = []
    for length in sample_lengths(count, rng):
        if texts and rng.random() < REPEATS:
            texts.append(texts[int(rng.integers(len(texts)))])
        else:
            texts.append(" ".join(f"w{word}" for word in rng.choice(vocabulary, length, p=share / share.sum())))
    return texts


def make_photo(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns uint8 RGB (size, size, 3): noise at every scale, each octave half as strong as the coarser one."""
    out = np.full((size, size, 3), 128, np.float32)
    side, strength = 2, 50.0
    while side <= size:
        out += cv2.resize(rng.normal(0, strength, (side, side, 3)).astype(np.float32), (size, size))
        side, strength = side * 2, strength / 2
    return np.clip(out, 0, 255).astype(np.uint8)
