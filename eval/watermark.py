"""An invisible mark in a picture that says by what it was made, and that lives through JPEG.

32 bits, the hash of a text, each in many coefficients of the 8 x 8 cosine transform of the luma (quantisation index
modulation, Chen and Wornell 2001; the blocks are JPEG's own). It is meant to tell honest readers, not to resist someone
who wants it gone: resizing, cropping or a strong filter takes it away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

from dataprep.schema import UserError

BITS, BLOCK = 32, 8
PLACES = ((1, 2), (2, 1), (2, 2), (0, 3))  # coefficients of low frequency, which JPEG keeps best
STEP = 20.0  # between two values that carry the same bit: JPEG at quality 90 moves these coefficients by about 2
HEADROOM = 3  # room at black and white, so that a mark on them is not clipped away
LEAST_SIDE = 32  # a bit in at least two coefficients
WRONG = 3  # bits that may be wrong: of pictures without a mark one in 780,000 passes
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def can_carry(size: Sequence[int]) -> bool:
    """Whether a picture of these two sides is large enough to carry a mark."""
    return min(size) >= LEAST_SIDE


def mark(image_HWC: np.ndarray, text: str) -> np.ndarray:
    """The picture (uint8 RGB) with the mark of ``text``; UserError where a side is below `LEAST_SIDE`."""
    if not can_carry(image_HWC.shape[:2]):
        height, width = image_HWC.shape[:2]
        raise UserError(f"picture of {width}x{height} is too small for a watermark; {LEAST_SIDE} pixels a side or more")
    pixels = image_HWC.astype(np.float32).clip(HEADROOM, 255 - HEADROOM)
    luma_HW, bits = pixels @ LUMA, _bits(text)
    moved_HW = luma_HW.copy()
    for number, (top, left) in enumerate(_blocks(luma_HW)):
        block = cv2.dct(luma_HW[top : top + BLOCK, left : left + BLOCK])
        for place, index in enumerate(PLACES):
            offset = STEP / 4 if bits[_bit(number, place)] else -STEP / 4
            block[index] = np.round((block[index] - offset) / STEP) * STEP + offset
        moved_HW[top : top + BLOCK, left : left + BLOCK] = cv2.idct(block)
    # The same change of all three colours changes the luma by just that.
    return np.asarray((pixels + (moved_HW - luma_HW)[:, :, None]).round().clip(0, 255).astype(np.uint8))


def has_mark(image_HWC: np.ndarray, text: str) -> bool:
    """Whether the picture (uint8 RGB) carries the mark of ``text``; False for one too small to carry any."""
    if not can_carry(image_HWC.shape[:2]):
        return False
    luma_HW, votes = image_HWC.astype(np.float32) @ LUMA, np.zeros(BITS)
    for number, (top, left) in enumerate(_blocks(luma_HW)):
        block = cv2.dct(luma_HW[top : top + BLOCK, left : left + BLOCK])
        for place, index in enumerate(PLACES):
            votes[_bit(number, place)] += np.sin(2 * np.pi * block[index] / STEP)
    return int(((votes > 0) != _bits(text)).sum()) <= WRONG


def _bits(text: str) -> np.ndarray:
    digest = hashlib.sha256(text.encode()).digest()[: BITS // 8]
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(bool)


def _bit(block: int, place: int) -> int:
    return (block * len(PLACES) + place) % BITS


def _blocks(luma_HW: np.ndarray) -> list[tuple[int, int]]:
    height, width = luma_HW.shape
    return [(y, x) for y in range(0, height - BLOCK + 1, BLOCK) for x in range(0, width - BLOCK + 1, BLOCK)]
