"""Pictures and their files for the tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(seed: int = 0, width: int = 96, height: int = 80) -> np.ndarray:
    """Smooth random colours: uint8 HWC RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """``image`` as a file of Pillow's format ``kind``."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()
