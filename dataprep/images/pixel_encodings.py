"""Registry of the compressed encodings of packed pixels. Light: importing it loads no OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataprep.pack_config import PackConfig


@dataclass(frozen=True)
class PixelEncoding:
    """An encoding that OpenCV writes and reads; its name is the file extension."""

    options: Callable[[PackConfig], list[int]]  # flags of cv2.imencode
    lossless: bool


def png_options(config: PackConfig) -> list[int]:
    """Returns the flags for PNG, at compression level 3."""
    import cv2

    return [cv2.IMWRITE_PNG_COMPRESSION, 3]


def jpeg_options(config: PackConfig) -> list[int]:
    """Returns the flags for JPEG."""
    import cv2

    return [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]


PIXEL_ENCODINGS: dict[str, PixelEncoding] = {
    "png": PixelEncoding(png_options, lossless=True),
    "jpeg": PixelEncoding(jpeg_options, lossless=False),
}
