"""Images and image files for tests."""

from __future__ import annotations

import io
import tarfile

import cv2
import numpy as np
from PIL import Image


def picture(seed: int = 0, width: int = 96, height: int = 80) -> np.ndarray:
    """Makes an image of smooth random colours: uint8 HWC RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


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


def draw_face(side: int = 96) -> np.ndarray:
    """Draws a frontal face that OpenCV's cascade finds: uint8 RGB, side x side."""
    skin, hair, scale = (225, 185, 155), (60, 40, 25), side / 96
    image = np.full((side, side, 3), (90, 110, 140), np.uint8)

    def draw(x: float, y: float, width: float, height: float, colour: tuple[int, int, int]) -> None:
        centre, axes = (round(x * scale), round(y * scale)), (round(width * scale), round(height * scale))
        cv2.ellipse(image, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)

    draw(48, 50, 34, 44, skin)
    draw(48, 16, 34, 16, hair)
    for x in (33, 63):
        draw(x, 40, 10, 6, (150, 105, 80))
        draw(x, 41, 6, 4, (250, 250, 250))
        draw(x, 41, 3, 4, (30, 20, 10))
        draw(x, 31, 11, 3, hair)
    draw(48, 56, 4, 9, (240, 205, 175))
    draw(48, 63, 8, 3, (170, 115, 90))
    draw(48, 76, 15, 5, (160, 60, 60))
    draw(48, 75, 13, 1, (90, 20, 20))
    return cv2.GaussianBlur(image, (0, 0), 1.2 * scale)
