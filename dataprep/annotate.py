"""What is measured on every downloaded pair, so that selection is a matter of reading columns.

The annotation table of a shard is row-aligned with its download table; rows without an image have nulls.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import Field, field_validator

from dataprep.decode import MAX_PIXELS, decode_rgb, read_shard_images
from dataprep.schema import Config, read_table, write_table

THUMBNAIL_SIDE = 8
CJK = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯豈-﫿]")
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "ok": pa.bool_(),
        "width": pa.int32(),  # of the original, before any resize
        "height": pa.int32(),
        "aspect": pa.float32(),  # longer side / shorter side
        "bytes": pa.int64(),  # of the stored file
        "sha256": pa.string(),  # of the stored file
        "phash": pa.uint64(),  # 64-bit DCT hash of the grey picture
        "thumbnail": pa.binary(
            THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3
        ),  # uint8 RGB, HWC: tells colours apart, phash cannot
        "caption": pa.string(),
        "caption_chars": pa.int32(),
        "caption_words": pa.int32(),
        "alpha_share": pa.float32(),
        "language": pa.string(),
        "language_confidence": pa.float32(),
    }
)


class AnnotateConfig(Config):
    """How pairs are measured."""

    languages: tuple[str, ...] = Field(
        default=(
            "en",
            "zh",
            "ar",
            "cs",
            "de",
            "es",
            "fr",
            "hi",
            "id",
            "it",
            "ja",
            "ko",
            "nl",
            "pl",
            "pt",
            "ru",
            "sv",
            "tr",
            "vi",
        ),
        min_length=1,
        strict=False,
        description="languages told apart (ISO 639-1); fewer make short captions surer",
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [code for code in languages if not re.fullmatch(r"[a-z]{2,3}", code)]:
            raise ValueError(f"{unknown[0]!r} is not an ISO 639-1 code such as en")
        try:
            language_identifier(languages)
        except ValueError as error:
            raise ValueError(f"a language is not known to the classifier ({error}); remove it") from error
        return languages


@cache
def language_identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    """py3langid's model, bundled with the package, restricted to ``languages``; ValueError for one it does not know.

    Unpacking it takes longer than measuring a thousand captions, so a worker does it once, not for every shard.
    """
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))
    return identifier


def count_words(caption: str) -> int:
    """Words between spaces; a Chinese, Japanese or Korean character counts as a word of its own."""
    return len(CJK.findall(caption)) + len(CJK.sub(" ", caption).split())


def alpha_share(caption: str) -> float:
    """The share of letters, of any script, among the characters that are not spaces; 0 for an empty caption."""
    visible = [char for char in caption if not char.isspace()]
    letters = sum(unicodedata.category(char)[0] in "LM" for char in visible)
    return letters / len(visible) if visible else 0.0


def perceptual_hash(image: np.ndarray) -> int:
    """64-bit perceptual hash (DCT signs against their median, `imagehash.phash`) of uint8 HWC RGB."""
    bits = imagehash.phash(Image.fromarray(image)).hash.reshape(-1)
    return int(np.packbits(bits).view(">u8")[0])


def thumbnail(image: np.ndarray) -> bytes:
    """The mean colours of an 8x8 grid over uint8 HWC RGB, as 192 bytes."""
    return cv2.resize(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).tobytes()


def annotate_shard(
    tar_path: str | Path,
    parquet_path: str | Path,
    out_path: str | Path,
    config: AnnotateConfig,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, int]:
    """Measures one download shard and writes its annotations; counters rows and ok.

    Raises ValueError where tar and Parquet do not belong together, or an image has more than ``max_pixels``.
    """
    columns = ["key", "caption", "status", "original_width", "original_height", "sha256"]
    images = read_shard_images(tar_path)
    annotated = []
    rows = read_table(parquet_path, "download", columns).to_pylist()
    captions = annotate_captions([row["caption"] for row in rows], language_identifier(config.languages))
    for row, measured in zip(rows, captions, strict=True):
        if row["status"] == "success":
            key, data = next(images, (None, b""))
            if key != row["key"]:
                raise ValueError(f"{tar_path}: image {key} where the table has {row['key']}; download the shard again")
            measured |= _image_columns(data, max_pixels)
            width, height = row["original_width"], row["original_height"]
            measured |= {"width": width, "height": height, "aspect": max(width, height) / min(width, height)}
        annotated.append(measured | {"key": row["key"], "ok": row["status"] == "success", "sha256": row["sha256"]})
    write_table(pa.Table.from_pylist(annotated, schema=SCHEMA), out_path, "annotations")
    return {"rows": len(annotated), "ok": sum(row["ok"] for row in annotated)}


def _image_columns(data: bytes, max_pixels: int) -> dict[str, Any]:
    image = decode_rgb(data, max_pixels)
    return {"bytes": len(data), "phash": perceptual_hash(image), "thumbnail": thumbnail(image)}


def annotate_captions(captions: Iterable[str], identifier: LanguageIdentifier) -> Iterator[dict[str, Any]]:
    """The caption columns of each caption, in order; a caption may be any text."""
    return (_caption_columns(caption, identifier) for caption in captions)


def _caption_columns(caption: str, identifier: LanguageIdentifier) -> dict[str, Any]:
    language, confidence = identifier.classify(caption)
    return {
        "caption": caption,
        "caption_chars": len(caption),
        "caption_words": count_words(caption),
        "alpha_share": alpha_share(caption),
        "language": language,
        "language_confidence": round(float(confidence), 4),  # the last bits differ between CPUs
    }
