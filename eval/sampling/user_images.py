"""Reads image files that a user names, by the decoder of the training images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dataprep.images.decode import ImageError, decode_rgb, open_image
from dataprep.images.formats import FORMATS
from dataprep.io.errors import UserError


def read_image(option: str, path: Path | None) -> Image.Image | None:
    """Returns the RGB image of the file at ``path``: rotated by its EXIF orientation, transparency on white.

    Raises UserError, naming ``option``, for a file that the download would not store either.
    """
    if path is None:
        return None
    try:
        return Image.fromarray(decode_rgb(_read_file(option, path)))
    except ImageError as error:
        raise _refuse(option, path, error) from error


def read_mask_image(option: str, path: Path | None) -> Image.Image | None:
    """Returns the image of the file at ``path`` with its alpha; see `eval.sampling.image_editing.read_mask`."""
    if path is None:
        return None
    data = _read_file(option, path)
    try:
        decode_rgb(data)  # checks all of the file
        image = open_image(data)
    except ImageError as error:
        raise _refuse(option, path, error) from error
    image.load()
    return image


def _read_file(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{option} {path}: not a file that can be read ({error.strerror or error})") from error


def _refuse(option: str, path: Path, error: ImageError) -> UserError:
    return UserError(f"{option} {path}: not an image that can be read ({error}); give one of {', '.join(FORMATS)}")
