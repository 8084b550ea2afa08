"""Registry of the compressed encodings of packed pixels. Light: importing it loads no OpenCV."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataprep.io.pack_format import ImageShape

if TYPE_CHECKING:
    from dataprep.pack_config import PackConfig

FULL_COLOUR_BELOW = 512  # shorter side in pixels
RESTARTS_FROM = 128  # shorter side in pixels; smaller images are decoded as fast as they are cut


@dataclass(frozen=True)
class PixelEncoding:
    """An encoding that OpenCV writes and reads; its name is the file extension."""

    options: Callable[[PackConfig, ImageShape], list[int]]  # flags of cv2.imencode, for images of a shape
    lossless: bool


def png_options(config: PackConfig, shape: ImageShape) -> list[int]:
    """Returns the flags for PNG, at compression level 3."""
    import cv2

    return [cv2.IMWRITE_PNG_COMPRESSION, 3]


def jpeg_options(config: PackConfig, shape: ImageShape) -> list[int]:
    """Returns the flags for JPEG: full colour resolution of small images, and restart markers in larger ones.

    At half the colour resolution, which is OpenCV's default, edges of colours are off by tens of levels, which a model
    of small images learns. Restart markers allow the loader to decode crops alone (`train.loader.jpeg_crop`).
    """
    import cv2

    full, options = min(shape) < FULL_COLOUR_BELOW, [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    factor = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    if min(shape) >= RESTARTS_FROM:
        options += [cv2.IMWRITE_JPEG_RST_INTERVAL, choose_restart_interval(shape[1], 8 if full else 16)]
    return options


def choose_restart_interval(width: int, mcu: int) -> int:
    """Returns the MCUs of ``mcu`` pixels between two restart markers: near 8, a divisor of a row of MCUs.

    More would decode more around a crop; fewer would cost more than the 1 to 3% of bytes that they do at 8.
    """
    row = -(-width // mcu)
    return min((count for count in range(1, row + 1) if row % count == 0), key=lambda count: abs(math.log(count / 8)))


PIXEL_ENCODINGS: dict[str, PixelEncoding] = {
    "png": PixelEncoding(png_options, lossless=True),
    "jpeg": PixelEncoding(jpeg_options, lossless=False),
}
