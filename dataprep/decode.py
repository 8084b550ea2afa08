"""From encoded image bytes to RGB pixels, safely, and from a download shard's tar to its images.

Legend: H height, W width, C=3 channels (red, green, blue), N images. Pixels are uint8 in 0..255, laid out HWC.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
CROPS = ("centre", "squash")


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads the header alone: the undecoded image, known to be of a supported format and within ``max_pixels``.

    Raises ValueError with a reason that is a pure function of ``data`` and ``max_pixels``.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("not an image of a supported format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than max_pixels={max_pixels} pixels") from error
    except Exception as error:  # Pillow's parsers raise many types on hostile headers (struct.error, SyntaxError, ...)
        raise ValueError(f"unreadable header: {type(error).__name__}: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} is more than max_pixels={max_pixels} pixels")
    return image


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file to uint8 HWC RGB: turned as its EXIF says, alpha laid over white, 16 bits scaled to 8.

    Of an animation the first frame. The pixel limit is checked on the header, before anything is decoded.
    Raises ValueError with the reason: not an image, truncated, too large, a mode without a meaning as RGB.
    """
    image = open_image(data, max_pixels)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        return np.ascontiguousarray(np.asarray(_to_rgb(image)))
    except ValueError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error, zlib.error, ...
        raise ValueError(f"damaged image: {error}" if isinstance(error, OSError) else "damaged image") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255, a mid-grey would come out white
        grey_HW = np.asarray(image).astype(np.int64)
        grey = np.clip((grey_HW + 128) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; convert the file to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize_square(image: np.ndarray, size: int, crop: str = "centre") -> np.ndarray:
    """Resizes uint8 HWC to uint8 (size, size, C): area averaging when it shrinks (antialiased), cubic when it grows.

    ``crop`` is "centre" (the largest centred square) or "squash" (the whole image, aspect lost).
    """
    if crop not in CROPS:
        raise ValueError(f"crop {crop!r} is not one of {', '.join(CROPS)}")
    height, width = image.shape[:2]
    if crop == "centre" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    shrinks = min(image.shape[:2]) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def read_shard_images(tar_path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yields (key, encoded image bytes) of a download shard's tar, in its order, one image in memory at a time."""
    with tarfile.open(tar_path, "r|") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if extension in IMAGE_EXTENSIONS:
                file = tar.extractfile(member)
                assert file is not None, member.name
                yield key, file.read()


def read_shard_rgb(tar_path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, uint8 HWC RGB) of a download shard's tar, in its order."""
    for key, data in read_shard_images(tar_path):
        yield key, decode_rgb(data, max_pixels)


def read_pixels(tar_path: str | Path, keys: Sequence[str], size: int, crop: str = "centre") -> np.ndarray:
    """The images ``keys`` of a download shard as uint8 (N, size, size, 3), in the order of ``keys``.

    Raises ValueError naming the keys that the shard does not hold.
    """
    wanted = set(keys)
    found = {
        key: resize_square(decode_rgb(data), size, crop) for key, data in read_shard_images(tar_path) if key in wanted
    }
    if missing := [key for key in keys if key not in found]:
        raise ValueError(f"{tar_path}: no image for keys {', '.join(missing[:5])} ({len(missing)} in all)")
    return np.stack([found[key] for key in keys]) if keys else np.zeros((0, size, size, 3), np.uint8)
