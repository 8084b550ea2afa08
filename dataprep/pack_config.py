"""Config of packed training images."""

from __future__ import annotations

import re
from math import gcd
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dataprep.images.aspect_buckets import compute_bucket_shapes
from dataprep.images.pixel_encodings import PIXEL_ENCODINGS
from dataprep.io.caption_mix import ONE_CAPTION, CaptionWeights
from dataprep.io.config import Config, NameIn
from dataprep.io.pack_format import FEATURES, TEXT_FEATURES, ImageShape

Features = Annotated[str, NameIn(FEATURES)]


class PackConfig(Config):
    """How training images are stored."""

    resolutions: tuple[int, ...] = Field(
        default=(16, 64, 256), strict=False, min_length=1, description="sides in pixels, one column each"
    )
    raw_up_to: int = Field(
        default=64, ge=0, description="store resolutions up to this as raw pixels, which need no decoding"
    )
    encoding: Annotated[str, NameIn(PIXEL_ENCODINGS)] = Field(
        default="png", description="encoding of larger resolutions"
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="quality if encoding is jpeg")
    crop: Literal["centre", "squash"] = Field(
        default="centre", description="centre: crop to the stored aspect ratio; squash: change the aspect ratio"
    )
    aspects: tuple[str, ...] = Field(
        default=(), strict=False, description="aspect buckets, width:height, such as 4:3; empty: squares"
    )
    aspect_multiple: int = Field(
        default=8, ge=1, description="sides of a bucket at the smallest resolution are multiples of this"
    )
    row_group_rows: int = Field(default=128, ge=1, description="rows per row group, in pack and embeddings")
    compression: Literal["none", "lz4", "zstd"] = Field(
        default="none", description="compression of raw pixels; png and jpeg are already compressed"
    )
    captions: CaptionWeights = Field(
        default=ONE_CAPTION,
        description="which captions of an image to train on, and how often: column of the listing or name in "
        "caption.prompts -> weight, `caption` being the image's own; a list: these and `caption`, equally often",
    )
    blur_faces: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="blur faces that annotate.faces found, in boxes larger by this share, such as 0.3; null: do not",
    )
    features: tuple[Features, ...] = Field(
        default=(),
        strict=False,
        description="columns of score to train on: clip_embedding, of the image; clip_text_embedding, of its caption",
    )

    def encoding_of(self, size: int) -> str:
        """Returns the encoding of images of ``size``: raw, or a name in `PIXEL_ENCODINGS`."""
        return "raw" if size <= self.raw_up_to else self.encoding

    def shapes(self, size: int) -> dict[str, ImageShape]:
        """Returns {bucket: (height, width)} at resolution ``size``; without buckets the only one is `SQUARE`."""
        return compute_bucket_shapes(self.aspects, size, min(self.resolutions), self.aspect_multiple)

    def check_sides(self, size: int, multiple: int, what: str) -> None:
        """Raises ValueError where a side of a bucket at resolution ``size`` is no multiple of what ``what`` needs."""
        for bucket, (height, width) in self.shapes(size).items():
            if height % multiple or width % multiple:
                want = multiple // gcd(multiple, size // min(self.resolutions))
                raise ValueError(
                    f"pack.aspects: {bucket} is {width}x{height} at resolution {size}, and {what} needs multiples of "
                    f"{multiple}; set pack.aspect_multiple to a multiple of {want}"
                )

    @model_validator(mode="after")
    def _aspects_fit(self) -> PackConfig:
        for name in self.aspects:
            if not re.fullmatch(r"[1-9][0-9]{0,2}:[1-9][0-9]{0,2}", name) or self.aspects.count(name) > 1:
                raise ValueError(
                    f"aspects: {name!r} is not a ratio or occurs twice; give distinct ratios, width:height, such as 4:3"
                )
        smallest = min(self.resolutions)
        if self.aspects and (uneven := [size for size in self.resolutions if size % smallest]):
            raise ValueError(
                f"aspects: resolution {uneven[0]} is not a multiple of {smallest}, the smallest; change one"
            )
        self.shapes(smallest)
        return self

    @model_validator(mode="after")
    def _check_features(self) -> PackConfig:
        if twice := next((name for name in self.features if self.features.count(name) > 1), None):
            raise ValueError(f"features: {twice} occurs twice; leave one out")
        if TEXT_FEATURES in self.features and [*self.captions] != ["caption"]:
            raise ValueError(
                f"captions={list(self.captions)}: {TEXT_FEATURES} is that of a row's own caption alone; leave captions "
                f"out, or {TEXT_FEATURES}"
            )
        return self

    @field_validator("resolutions")
    @classmethod
    def _distinct(cls, resolutions: tuple[int, ...]) -> tuple[int, ...]:
        if bad := [size for size in resolutions if size < 1 or resolutions.count(size) > 1]:
            raise ValueError(f"{bad[0]} is not positive or occurs twice; give distinct sides in pixels")
        return resolutions
