"""Column names by which the URL, the caption and the file of a row are recognised, best first.

Upper and lower case are the same, and so are ``alt text``, ``alt-text`` and ``alt_text``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Spellings in public lists (LAION URL/TEXT, CommonPool and COYO url/text, CC12M url/caption).
URL_NAMES = ("url", "image_url", "img_url", "image", "link", "image_link", "img_link", "photo_url", "uri", "src")
CAPTION_NAMES = ("caption", "captions", "text", "texts", "alt_text", "alt", "title", "description", "prompt")
FILE_NAMES = ("file_name", "filename", "file", "path", "image")  # of a captions table in a folder of images


def fold_name(name: str) -> str:
    """Returns a column name as it is compared."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def index_names(names: Iterable[str]) -> dict[str, str]:
    """Returns {compared name: name as it is written}; of several the first."""
    return {fold_name(name): name for name in reversed(list(names))}
