"""Pictures that come from outside: in which sizes a cascade can draw, and a picture and its mask at each of them.

Sizes here are (width, height), as in PIL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps

from dataprep.schema import UserError
from eval.generate import Edit, Stage

Size = tuple[int, int]


def unit(stages: Sequence[Stage]) -> int:
    """Sides of the last of ``stages``' images must be multiples of this, for every stage to be able to draw its own."""
    last = stages[-1].entry.resolution
    first = stages[0].entry.low_resolution or stages[0].entry.resolution
    needed = [stage.model.config.size_multiple() * (last // stage.entry.resolution) for stage in stages]
    return math.lcm(last // first, *needed)


def nearest_size(stages: Sequence[Stage], aspect: float) -> Size:
    """The size of about the usual area and ``aspect`` (width / height) that the last of ``stages`` can draw."""
    if not 0 < aspect < math.inf:
        raise UserError(f"aspect {aspect} is not a ratio; give width / height, such as 1.5")
    step, side = unit(stages), stages[-1].entry.resolution
    width, height = (max(1, round(side * math.sqrt(ratio) / step)) * step for ratio in (aspect, 1 / aspect))
    return width, height


def check_size(stages: Sequence[Stage], size: Size) -> Size:
    """``size`` again; UserError where the last of ``stages`` cannot draw it, with the nearest one that it can."""
    step = unit(stages)
    if min(size) < 1 or any(side % step for side in size):
        width, height = (max(1, round(side / step)) * step for side in size)
        raise UserError(
            f"size {size[0]}x{size[1]}: sides must be multiples of {step} at stage {stages[-1].entry.name}; "
            f"take {width}x{height}"
        )
    return size


def stage_size(stages: Sequence[Stage], size: Size, resolution: int) -> Size:
    """``size`` of the last of ``stages`` as it is at another resolution of the cascade."""
    last = stages[-1].entry.resolution
    return size[0] * resolution // last, size[1] * resolution // last


def rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3), turned as its EXIF says; what is transparent becomes white."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def fit(pixels_HWC: np.ndarray, size: Size) -> np.ndarray:
    """The middle of a picture with ``size``'s aspect, resized: averaged where it shrinks, as the training data was."""
    height, width = pixels_HWC.shape[:2]
    scale = min(width / size[0], height / size[1])
    cut_w, cut_h = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    left, top = (width - cut_w) // 2, (height - cut_h) // 2
    cut = pixels_HWC[top : top + cut_h, left : left + cut_w]
    return np.asarray(cv2.resize(cut, size, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC))


def tensor(pixels_HWC: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [-1, 1]."""
    return (torch.from_numpy(np.array(pixels_HWC)).permute(2, 0, 1)[None].float() / 127.5 - 1).to(device)


def edit_at(pixels_HWC: np.ndarray, mask_HW: np.ndarray | None, size: Size, device: torch.device) -> Edit:
    """The edit at one stage's size. A pixel that the mask touches at all is drawn anew."""
    hidden = None
    if mask_HW is not None:
        # Grown to whole pixels of the stage: half a pixel of what is to go would come back in what is drawn.
        hidden_HW = fit(mask_HW.astype(np.float32), size) > 1e-3
        hidden = torch.from_numpy(hidden_HW)[None, None].to(device)
    return Edit(tensor(fit(pixels_HWC, size), device), hidden)


def mask_of(mask: Image.Image, image_HWC: np.ndarray) -> np.ndarray:
    """bool (H, W), True (white, or opaque) where to draw anew; UserError for another size than the image's, or none."""
    found_HW = np.asarray(mask.convert("L")) > 127
    if found_HW.shape != image_HWC.shape[:2]:
        height, width = image_HWC.shape[:2]
        raise UserError(f"mask of {mask.width}x{mask.height}, image of {width}x{height}; give them the same size")
    if not found_HW.any():
        raise UserError("mask is black all over; paint white what is to be drawn anew")
    return found_HW
