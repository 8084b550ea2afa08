"""Column names and field metadata of pack files, shared by the writer (`dataprep.pack`) and the training loader."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

ORIGINAL_SIDE = "original_side"  # column: shorter side of the fetched image, in pixels
BUCKET_COLUMN = "bucket"  # column: aspect bucket of the row
ENCODING_KEY = b"encoding"  # field metadata of a pixel column: raw, or a format that OpenCV decodes
SHAPES_KEY = b"shapes"  # field metadata of a pixel column: JSON {bucket: [height, width]}
CAPTIONS_KEY = b"captions"  # field metadata of `captions`: JSON list of the names of a row's captions
IMAGE_FEATURES, TEXT_FEATURES = "clip_embedding", "clip_text_embedding"  # columns: unit vectors of CLIP, float16
FEATURES = {IMAGE_FEATURES: "of the image", TEXT_FEATURES: "of the caption"}
SQUARE = ""  # the only bucket of a pack of square images
ImageShape = tuple[int, int]  # height and width in pixels


def pixels_column(size: int) -> str:
    """Returns the name of the column that holds images of resolution ``size``."""
    return f"pixels_{size}"


def stored_shapes(field: pa.Field, size: int) -> dict[str, ImageShape]:
    """Returns the image shape of each bucket in a pixel column of resolution ``size``."""
    shapes = (field.metadata or {}).get(SHAPES_KEY)
    if shapes is None:
        return {SQUARE: (size, size)}
    return {bucket: (height, width) for bucket, (height, width) in json.loads(shapes).items()}


def caption_names(field: pa.Field) -> list[str]:
    """Returns the names of the captions of a row of a pack, in their order, from the field `captions`."""
    names: list[str] = json.loads((field.metadata or {}).get(CAPTIONS_KEY, b'["caption"]'))
    return names
