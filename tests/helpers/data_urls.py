"""Images out of data URLs."""

from __future__ import annotations

import base64
import io

from PIL import Image


def decode_data_url(source: str) -> Image.Image:
    """The image of a base64 data URL."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
