"""Images and image files for tests."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from PIL import Image


def picture(seed: int = 0, width: int = 96, height: int = 80) -> np.ndarray:
    """Makes an image of smooth random colours: uint8 HWC RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encodes ``image`` in Pillow's format ``kind``."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips bytes, mostly in the header, and truncates, removes or repeats a part."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(0, 9))):
        place = int(rng.integers(len(changed) if rng.random() < 0.5 else min(120, len(changed))))
        changed[place] = int(rng.integers(256))
    kind, here, there = rng.random(), *sorted(int(place) for place in rng.integers(0, len(changed) + 1, 2))
    if kind < 0.15:
        return bytes(changed[:here])
    if kind < 0.25:
        return bytes(changed[:here] + changed[there:])
    if kind < 0.35:
        return bytes(changed[:there] + changed[here:])
    return bytes(changed)


def read_member(tar: tarfile.TarFile, name: str) -> bytes:
    """Reads a file of a tar."""
    file = tar.extractfile(name)
    assert file is not None, name
    return file.read()
