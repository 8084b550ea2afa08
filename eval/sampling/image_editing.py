"""Images given by the user: the sizes that a cascade can sample, and an image and its mask at each stage's size.

Sizes are (width, height), as in PIL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from dataprep.images.decode import ImageError, convert_image
from dataprep.images.resize import resize_to_shape
from dataprep.io.errors import UserError
from eval.sampling.options import Size
from eval.sampling.stage_sampler import LoadedStage, StageEdit


def size_step(stages: Sequence[LoadedStage]) -> int:
    """Returns the number that must divide the sides of the last stage's images for every stage to sample its own."""
    last = stages[-1].entry.resolution
    first = stages[0].entry.low_resolution or stages[0].entry.resolution
    needed = [
        network.config.size_multiple() * (last // stage.entry.resolution)
        for stage in stages
        for network in stage.networks()
    ]
    return math.lcm(last // first, *needed)


def nearest_size(stages: Sequence[LoadedStage], aspect: float) -> Size:
    """Returns the valid size nearest to the usual area and ``aspect`` (width / height), for the last of ``stages``."""
    if not 0 < aspect < math.inf:
        raise UserError(f"aspect {aspect} is not a ratio; give width / height, such as 1.5")
    step, side = size_step(stages), stages[-1].entry.resolution
    width, height = (max(1, round(side * math.sqrt(ratio) / step)) * step for ratio in (aspect, 1 / aspect))
    return width, height


def check_size(stages: Sequence[LoadedStage], size: Size) -> Size:
    """Returns ``size``; raises UserError if the last of ``stages`` cannot sample it, naming the nearest valid size."""
    step = size_step(stages)
    if min(size) < 1 or any(side % step for side in size):
        width, height = (max(1, round(side / step)) * step for side in size)
        raise UserError(
            f"size {size[0]}x{size[1]}: sides must be multiples of {step} at stage {stages[-1].entry.name}; "
            f"take {width}x{height}"
        )
    return size


def stage_size(stages: Sequence[LoadedStage], size: Size, resolution: int) -> Size:
    """Converts ``size`` of the last of ``stages`` to another resolution of the cascade."""
    last = stages[-1].entry.resolution
    return size[0] * resolution // last, size[1] * resolution // last


def to_rgb(image: Image.Image) -> np.ndarray:
    """Returns uint8 (H, W, 3) as the training images are decoded: EXIF orientation, transparency on white, 16 bits.

    Raises UserError for pixels without a range, such as floats.
    """
    try:
        return convert_image(image)
    except ImageError as error:
        raise UserError(f"image of mode {image.mode}: {error}") from error


def fit_image(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Crops the centre of (H, W, 3) or (H, W) to the aspect of ``size`` and resizes it, as for the training data."""
    return resize_to_shape(pixels, (size[1], size[0]))


def to_tensor(pixels_HWC: np.ndarray, device: torch.device) -> torch.Tensor:
    """Converts uint8 (H, W, 3) to float32 (1, 3, H, W) in [-1, 1]."""
    return (torch.from_numpy(np.array(pixels_HWC)).permute(2, 0, 1)[None].float() / 127.5 - 1).to(device)


def edit_at(image_HWC: np.ndarray, mask_HW: np.ndarray | None, size: Size, device: torch.device) -> StageEdit:
    """Returns the edit at one stage's size. A pixel of the stage that the mask touches is regenerated."""
    hidden = None
    if mask_HW is not None:
        # Grown to whole pixels of the stage: otherwise part of the masked content would show through.
        hidden_HW = fit_image(mask_HW.astype(np.float32), size) > 1e-3
        hidden = torch.from_numpy(hidden_HW)[None, None].to(device)
    return StageEdit(to_tensor(fit_image(image_HWC, size), device), hidden)


def read_mask(mask: Image.Image, image_HWC: np.ndarray) -> np.ndarray:
    """Returns bool (H, W), True at opaque white.

    The mask is rotated by its EXIF orientation, as the image is. Raises UserError for another size than the image's,
    for pixels without a range, and without any white.
    """
    grey_HW = np.asarray(Image.fromarray(to_rgb(mask)).convert("L"), np.float32)
    if mask.has_transparency_data:  # which is white by now: what is transparent was not painted
        alpha = ImageOps.exif_transpose(mask).convert("RGBA").getchannel("A")
        grey_HW = grey_HW - (255 - np.asarray(alpha, np.float32))
    found_HW = grey_HW > 127
    if found_HW.shape != image_HWC.shape[:2]:
        height, width = image_HWC.shape[:2]
        raise UserError(f"mask of {mask.width}x{mask.height}, image of {width}x{height}; give them the same size")
    if not found_HW.any():
        raise UserError("mask has no white; paint white, and opaque, what is to be regenerated")
    return found_HW
