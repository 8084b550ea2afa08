"""Measures every downloaded pair, so that selection only reads columns.

The annotations of a shard are row-aligned with its download table; rows without an image have nulls.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from py3langid.langid import LanguageIdentifier

from dataprep.annotate_config import AnnotateConfig, load_language_identifier
from dataprep.images.decode import decode_rgb, read_shard_images
from dataprep.images.faces import FaceDetector, load_detector
from dataprep.images.formats import MAX_PIXELS
from dataprep.images.perceptual_hash import compute_perceptual_hash
from dataprep.images.text_area import TextDetector, load_text_detector
from dataprep.io.parquet import read_table, write_table
from dataprep.io.schemas import ANNOTATIONS, FACES, TEXT, THUMBNAIL_SIDE

CJK = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯豈-﫿]")


def count_words(caption: str) -> int:
    """Counts words between spaces; a Chinese, Japanese or Korean character counts as one word."""
    return len(CJK.findall(caption)) + len(CJK.sub(" ", caption).split())


def compute_alpha_share(caption: str) -> float:
    """Returns the share of letters, of any script, among the characters that are not spaces; 0 if there are none."""
    visible = [char for char in caption if not char.isspace()]
    letters = sum(unicodedata.category(char)[0] in "LM" for char in visible)
    return letters / len(visible) if visible else 0.0


def compute_thumbnail(image: np.ndarray) -> bytes:
    """Computes the mean colours of an 8x8 grid over uint8 HWC RGB, as 192 bytes."""
    return cv2.resize(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).tobytes()


def annotate_shard(
    tar_path: str | Path,
    parquet_path: str | Path,
    out_path: str | Path,
    config: AnnotateConfig,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, int]:
    """Measures one download shard and writes its annotations.

    Returns:
        Counters: rows, ok, without_image; the latter two add up to the rows.

    Raises:
        UserError: a detector's file is missing or of another form.
        ValueError: tar and Parquet do not belong together, or an image has more than ``max_pixels``.
    """
    faces = load_detector(config.faces) if config.faces else None
    text = load_text_detector(config.text) if config.text else None
    columns = ["key", "caption", "status", "original_width", "original_height", "sha256"]
    images = read_shard_images(tar_path)
    annotated = []
    rows = read_table(parquet_path, "download", columns).to_pylist()
    captions = annotate_captions([row["caption"] for row in rows], load_language_identifier(config.languages))
    for row, measured in zip(rows, captions, strict=True):
        if row["status"] == "success":
            key, data = next(images, (None, b""))
            if key != row["key"]:
                raise ValueError(f"{tar_path}: image {key} where the table has {row['key']}; download the shard again")
            measured |= _measure_image(data, max_pixels, faces, text)
            width, height = row["original_width"], row["original_height"]
            measured |= {"width": width, "height": height, "aspect": max(width, height) / min(width, height)}
        annotated.append(measured | {"key": row["key"], "ok": row["status"] == "success", "sha256": row["sha256"]})
    write_table(pa.Table.from_pylist(annotated, schema=list_columns(config)), out_path, "annotations")
    measured_rows = sum(row["ok"] for row in annotated)
    return {"rows": len(annotated), "ok": measured_rows, "without_image": len(annotated) - measured_rows}


def list_columns(config: AnnotateConfig) -> pa.Schema:
    """Returns the columns of the annotations."""
    return pa.schema([*ANNOTATIONS, *(FACES if config.faces else ()), *(TEXT if config.text else ())])


def _measure_image(
    data: bytes, max_pixels: int, faces: FaceDetector | None, text: TextDetector | None
) -> dict[str, Any]:
    image = decode_rgb(data, max_pixels)
    measured = {"bytes": len(data), "phash": compute_perceptual_hash(image), "thumbnail": compute_thumbnail(image)}
    measured |= _measure_faces(faces.detect(image)) if faces else {}
    return measured | ({"text_area": text.measure(image)} if text else {})


def _measure_faces(boxes_N4: np.ndarray) -> dict[str, Any]:
    areas = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    return {"faces": len(boxes_N4), "largest_face": areas.max(initial=0.0), "face_boxes": boxes_N4.tolist()}


def annotate_captions(captions: Iterable[str], identifier: LanguageIdentifier) -> Iterator[dict[str, Any]]:
    """Yields the caption columns of each caption, in order; a caption may be any text."""
    return (_measure_caption(caption, identifier) for caption in captions)


def _measure_caption(caption: str, identifier: LanguageIdentifier) -> dict[str, Any]:
    language, confidence = identifier.classify(caption)
    return {
        "caption": caption,
        "caption_chars": len(caption),
        "caption_words": count_words(caption),
        "alpha_share": compute_alpha_share(caption),
        "language": language,
        "language_confidence": round(float(confidence), 4),  # the last bits differ between CPUs
    }
