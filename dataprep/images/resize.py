"""Resizing, cropping and padding: the one place for every interpolation.

Images are uint8, H x W x 3 RGB. Sizes are (width, height), shapes are (height, width), in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dataprep.images.area_kernel import shrink_by_area

if TYPE_CHECKING:
    from PIL.Image import Resampling

CROPS = ("centre", "squash")


def resize_square(image_HWC: np.ndarray, size: int, crop: str = "centre") -> np.ndarray:
    """Resizes to a square of ``size``, see `resize_to_shape`."""
    return resize_to_shape(image_HWC, (size, size), crop)


def resize_to_shape(image_HWC: np.ndarray, shape: tuple[int, int], crop: str = "centre") -> np.ndarray:
    """Resizes to ``shape``: by area averaging (antialiased) when shrinking, else bicubic.

    ``crop`` is "centre" (the largest centred window of the target's aspect ratio) or "squash" (the whole image, which
    changes the aspect ratio). Raises ValueError for another value.
    """
    if crop not in CROPS:
        raise ValueError(f"crop {crop!r} is not one of {', '.join(CROPS)}")
    height, width = image_HWC.shape[:2]
    if crop == "centre" and height * shape[1] != width * shape[0]:
        inner = (
            min(height, max(1, round(width * shape[0] / shape[1]))),
            min(width, max(1, round(height * shape[1] / shape[0]))),
        )
        image_HWC = crop_centre(image_HWC, *inner)
    if image_HWC.shape[:2] == shape:
        return np.ascontiguousarray(image_HWC)
    shrinks = image_HWC.shape[0] >= shape[0] and image_HWC.shape[1] >= shape[1]
    if shrinks:
        return shrink_by_area(image_HWC, (shape[1], shape[0]))
    return cv2.resize(image_HWC, shape[::-1], interpolation=cv2.INTER_CUBIC)


def scale_image(image_HWC: np.ndarray, size: tuple[int, int], *, shrinks: bool) -> np.ndarray:
    """Scales to ``size``: by area averaging if ``shrinks``, else Lanczos (img2dataset's choice)."""
    if (image_HWC.shape[1], image_HWC.shape[0]) == size:
        return image_HWC
    if shrinks:
        return shrink_by_area(image_HWC, size)
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_LANCZOS4)


def crop_centre(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns a view of the centred ``height`` x ``width`` window."""
    top, left = (image_HWC.shape[0] - height) // 2, (image_HWC.shape[1] - width) // 2
    return image_HWC[top : top + height, left : left + width]


def pad_centre(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """Pads to a square of ``size`` with a white border, the image in the centre."""
    height, width = image_HWC.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    sides = (top, size - height - top, left, size - width - left)
    return cv2.copyMakeBorder(image_HWC, *sides, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def fit_square(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """Crops the centre square and resizes it with Pillow: box filter when shrinking, else bicubic."""
    from PIL import Image, ImageOps

    image = Image.fromarray(image_HWC)
    if image.size != (size, size):
        filter_ = Image.Resampling.BOX if min(image.size) >= size else Image.Resampling.BICUBIC
        image = ImageOps.fit(image, (size, size), filter_)
    return np.array(image)


def resize_then_crop(image_HWC: np.ndarray, size: int, resampling: Resampling) -> np.ndarray:
    """Resizes the shorter side to ``size``, then crops the centre: torchvision's Resize and CenterCrop, on Pillow."""
    from PIL import Image

    height, width = image_HWC.shape[:2]
    image = Image.fromarray(image_HWC)
    short, long = min(height, width), int(size * max(height, width) / min(height, width))
    if short != size:
        image = image.resize((size, long) if width == short else (long, size), resampling)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.array(image.crop((left, top, left + size, top + size)))
