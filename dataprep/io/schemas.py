"""Arrow schemas that several packages read."""

from __future__ import annotations

import pyarrow as pa

THUMBNAIL_SIDE = 8
ANNOTATIONS = pa.schema(
    {
        "key": pa.string(),
        "ok": pa.bool_(),
        "width": pa.int32(),  # of the original, before resizing
        "height": pa.int32(),
        "aspect": pa.float32(),  # longer side / shorter side
        "bytes": pa.int64(),  # of the stored file
        "sha256": pa.string(),  # of the stored file
        "phash": pa.uint64(),  # 64-bit DCT hash of the grey image
        "thumbnail": pa.binary(
            THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3
        ),  # uint8 RGB, HWC: distinguishes colours, which phash does not
        "caption": pa.string(),
        "caption_chars": pa.int32(),
        "caption_words": pa.int32(),
        "alpha_share": pa.float32(),
        "language": pa.string(),
        "language_confidence": pa.float32(),
    }
)
# Further columns where `annotate.faces` is set.
FACES = pa.schema(
    {
        "faces": pa.int32(),
        "largest_face": pa.float32(),  # share of the image that its box takes
        "face_boxes": pa.list_(pa.list_(pa.float32(), 4)),  # left, top, right, bottom: shares of width and height
    }
)
# A further column where `annotate.text` is set.
TEXT = pa.schema({"text_area": pa.float32()})  # share of the image that regions of text cover
