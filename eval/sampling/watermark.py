"""An invisible watermark that survives JPEG.

32 bits, the hash of a text, each in many coefficients of the 8 x 8 cosine transform of the luma (quantisation index
modulation, Chen and Wornell 2001; the blocks are those of JPEG). It labels images and does not resist removal:
resizing, cropping or a strong filter destroys it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

from dataprep.io.errors import UserError

BITS, BLOCK = 32, 8
PLACES = ((1, 2), (2, 1), (2, 2), (0, 3))  # coefficients of low frequency, which JPEG changes least
STEP = 20.0  # between two values that carry the same bit: JPEG at quality 90 moves these coefficients by about 2
HEADROOM = 3  # distance kept from black and white, where the mark would be clipped
LEAST_SIDE = 32  # at least two coefficients per bit
MAX_WRONG = 3  # wrong bits that are tolerated: 1 in 780,000 images without a mark passes
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def can_carry(size: Sequence[int]) -> bool:
    """Whether an image of these two sides is large enough for a watermark."""
    return min(size) >= LEAST_SIDE


def add_watermark(image_HWC: np.ndarray, text: str) -> np.ndarray:
    """Returns the image (uint8 RGB) with the mark of ``text``; raises UserError for a side below `LEAST_SIDE`."""
    if not can_carry(image_HWC.shape[:2]):
        height, width = image_HWC.shape[:2]
        raise UserError(f"image of {width}x{height} is too small for a watermark; the least side is {LEAST_SIDE}")
    pixels = image_HWC.astype(np.float32).clip(HEADROOM, 255 - HEADROOM)
    luma_HW, bits = pixels @ LUMA, _hash_bits(text)
    moved_HW = luma_HW.copy()
    for number, (top, left) in enumerate(_block_corners(luma_HW)):
        block = cv2.dct(luma_HW[top : top + BLOCK, left : left + BLOCK])
        for place, index in enumerate(PLACES):
            offset = STEP / 4 if bits[_bit_index(number, place)] else -STEP / 4
            block[index] = np.round((block[index] - offset) / STEP) * STEP + offset
        moved_HW[top : top + BLOCK, left : left + BLOCK] = cv2.idct(block)
    # The same change in all three channels changes the luma by exactly that.
    return np.asarray((pixels + (moved_HW - luma_HW)[:, :, None]).round().clip(0, 255).astype(np.uint8))


def has_watermark(image_HWC: np.ndarray, text: str) -> bool:
    """Whether the image (uint8 RGB) has the mark of ``text``; False for one that is too small for any."""
    if not can_carry(image_HWC.shape[:2]):
        return False
    luma_HW, votes = image_HWC.astype(np.float32) @ LUMA, np.zeros(BITS)
    for number, (top, left) in enumerate(_block_corners(luma_HW)):
        block = cv2.dct(luma_HW[top : top + BLOCK, left : left + BLOCK])
        for place, index in enumerate(PLACES):
            votes[_bit_index(number, place)] += np.sin(2 * np.pi * block[index] / STEP)
    return int(((votes > 0) != _hash_bits(text)).sum()) <= MAX_WRONG


def _hash_bits(text: str) -> np.ndarray:
    digest = hashlib.sha256(text.encode()).digest()[: BITS // 8]
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(bool)


def _bit_index(block: int, place: int) -> int:
    return (block * len(PLACES) + place) % BITS


def _block_corners(luma_HW: np.ndarray) -> list[tuple[int, int]]:
    height, width = luma_HW.shape
    return [(y, x) for y in range(0, height - BLOCK + 1, BLOCK) for x in range(0, width - BLOCK + 1, BLOCK)]
