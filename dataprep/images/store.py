"""Decodes, checks, resizes and encodes images for storage, by img2dataset's policy.

Legend: H height, W width, C=3 channels. Given the same input the pixels equal those of ``img2dataset.resizer.Resizer``
(tested). Input differs: files are decoded by `dataprep.images.decode`, limits are checked on the header, and a JPEG far
larger than needed is decoded at a half, a quarter or an eighth of its size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from dataprep.images.config import StoreConfig
from dataprep.images.decode import ImageError, OpenImage, check_pixels
from dataprep.images.resize import crop_centre, pad_centre, scale_image

MIN_DECODE_FACTOR = 2  # decode to at least this times the final side, so that the last resize still averages


class StoredImage(NamedTuple):
    """An encoded image with its size and that of the original, in pixels."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def store_image(data: bytes, config: StoreConfig, inspect: Callable[[np.ndarray], None] | None = None) -> StoredImage:
    """Decodes, checks, resizes and encodes an image file. Raises ImageError with the reason.

    ``inspect`` is called with the whole image (uint8 HWC RGB, scaled but not cropped) and may raise to refuse it.
    """
    image = OpenImage(data, config.max_pixels)
    width, height = image.width, image.height
    short, long = min(width, height), max(width, height)
    if short < config.min_side:
        raise ImageError("min_side", "image too small")
    if config.max_aspect is not None and long / short > config.max_aspect:
        raise ImageError("max_aspect", "aspect ratio too large")
    scaled = compute_scaled_size(width, height, config)
    if scaled is None:
        image_HWC = image.decode()
        if inspect is not None:
            inspect(image_HWC)
    else:
        check_pixels(*scaled, config.max_pixels)  # a thin strip may be enlarged without bound
        whole_HWC = image.decode(min(width, MIN_DECODE_FACTOR * scaled[0]), min(height, MIN_DECODE_FACTOR * scaled[1]))
        image_HWC = scale_image(whole_HWC, scaled, shrinks=_reference_side(width, height, config) > config.image_size)
        if inspect is not None:
            inspect(image_HWC)
        image_HWC = _crop_or_pad(image_HWC, config)
    return StoredImage(encode_image(image_HWC, config), image_HWC.shape[1], image_HWC.shape[0], width, height)


def _reference_side(width: int, height: int, config: StoreConfig) -> int:
    """Returns the side that image_size refers to."""
    return min(width, height) if config.resize_mode in ("keep_ratio", "center_crop") else max(width, height)


def compute_scaled_size(width: int, height: int, config: StoreConfig) -> tuple[int, int] | None:
    """Returns the (width, height) to scale an image to, before a crop or border; None to leave it unscaled."""
    side = _reference_side(width, height, config)
    if config.resize_mode == "no" or (config.resize_only_if_bigger and side <= config.image_size):
        return None
    factor = config.image_size / side
    return max(1, round(width * factor)), max(1, round(height * factor))


def _crop_or_pad(image_HWC: np.ndarray, config: StoreConfig) -> np.ndarray:
    """Crops the centre or adds a white border, as the mode requires."""
    if config.resize_mode == "center_crop":
        return crop_centre(image_HWC, config.image_size, config.image_size)
    return pad_centre(image_HWC, config.image_size) if config.resize_mode == "border" else image_HWC


def encode_image(image_HWC: np.ndarray, config: StoreConfig) -> bytes:
    """Encodes uint8 HWC RGB without metadata. Raises ImageError if the format cannot hold the image."""
    quality = {
        "jpg": cv2.IMWRITE_JPEG_QUALITY,
        "png": cv2.IMWRITE_PNG_COMPRESSION,
        "webp": cv2.IMWRITE_WEBP_QUALITY,
    }[config.encode_format]
    try:
        bgr_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)
        done, encoded = cv2.imencode(f".{config.encode_format}", bgr_HWC, [quality, config.encode_quality])
    except cv2.error as error:
        raise ImageError("encode", f"cannot be stored as {config.encode_format}") from error
    if not done:  # a side of more than 65,500 pixels (JPEG) or 16,383 (WebP)
        height, width = image_HWC.shape[:2]
        raise ImageError("encode", f"{width}x{height} cannot be stored as {config.encode_format}")
    return encoded.tobytes()
