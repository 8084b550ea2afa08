"""Metadata of a generated PNG: prompt, seed, model and settings as text chunks.

``prompt``, ``negative``, ``seed``, ``index``, ``model``, ``settings`` (JSON, by stage) and ``software`` are iTXt
chunks, which any PNG tool shows. ``picture`` says what a PNG shows that is made of samples and none itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataprep.io.errors import UserError

SOFTWARE = "imagen-ray"
# What Pillow and json raise for files that are broken, too large or no images.
UNREADABLE = (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError)
PARSED = ("seed", "index", "settings", "model", "size", "score", "adapters")


def save_png(path: Path, image: Image.Image, info: Mapping[str, Any]) -> Path:
    """Writes a PNG atomically with ``info``; values that are no strings are written as JSON."""
    chunks = PngInfo()
    for key, value in {**info, "software": SOFTWARE}.items():
        if value is not None:
            chunks.add_itxt(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, "PNG", pnginfo=chunks)
    os.replace(temporary, path)
    return path


def read_png_metadata(path: Path) -> dict[str, Any]:
    """Returns the info given to `save_png`, and ``software``; raises UserError for a file that it did not write."""
    try:
        with Image.open(path) as image:
            found = dict(getattr(image, "text", {}))
        parsed = {key: _parse_value(found[key]) for key in PARSED if key in found}
    except UNREADABLE as error:
        raise UserError(f"{path}: not an image that can be read ({error}); name a PNG that imagen-ray wrote") from error
    if found.get("software") != SOFTWARE:
        raise UserError(f"{path}: has no metadata of imagen-ray; name a PNG that it wrote")
    return found | parsed


def is_ours(path: Path) -> bool:
    """Returns whether `save_png` wrote the file."""
    try:
        read_png_metadata(path)
    except UserError:
        return False
    return True


def is_picture(path: Path) -> bool:
    """Returns whether `save_png` wrote the file with ``picture``; reads the head of the file, no pixels."""
    try:
        with Image.open(path) as image:
            return bool(image.info.get("software") == SOFTWARE and "picture" in image.info)
    except UNREADABLE:
        return False


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a name
        return text
