"""Perceptual hash of images."""

from __future__ import annotations

import imagehash
import numpy as np
from PIL import Image


def compute_perceptual_hash(image: np.ndarray) -> int:
    """Computes the 64-bit perceptual hash (DCT against its median, `imagehash.phash`) of uint8 HWC RGB.

    Written as 16 hexadecimal digits it is the text that imagehash prints.
    """
    bits = imagehash.phash(Image.fromarray(image)).hash.reshape(-1)
    return int(np.packbits(bits).view(">u8")[0])
