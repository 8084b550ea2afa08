"""What a PNG says about its making: prompt, seed, model and settings as text chunks, written and read back.

``prompt``, ``negative``, ``seed``, ``index``, ``model``, ``settings`` (JSON, a stage each) and ``software`` are iTXt
chunks, so any PNG tool shows them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataprep.schema import UserError

SOFTWARE = "imagen-ray"


def save_png(path: Path, image: Image.Image, info: Mapping[str, Any]) -> Path:
    """Writes a PNG with ``info``: what is no text is written as JSON. The file is whole or is not there."""
    chunks = PngInfo()
    for key, value in {**info, "software": SOFTWARE}.items():
        if value is not None:
            chunks.add_itxt(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, "PNG", pnginfo=chunks)
    os.replace(temporary, path)
    return path


def read_png(path: Path) -> dict[str, Any]:
    """What `save_png` was given, ``software`` too; UserError for a file that it did not write."""
    try:
        with Image.open(path) as image:
            found = dict(getattr(image, "text", {}))
    except OSError as error:
        raise UserError(f"{path}: not a picture that can be read ({error})") from error
    if found.get("software") != SOFTWARE:
        raise UserError(f"{path}: says nothing of imagen-ray; name a PNG that it wrote")
    for key in ("seed", "index", "settings", "model", "size", "score"):
        if key in found:
            found[key] = _value(found[key])
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a name
        return text
