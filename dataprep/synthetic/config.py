"""Config of the embedded corpus."""

from __future__ import annotations

from pydantic import Field, model_validator

from dataprep.io.config import Config


class TroubleRates(Config):
    """Share of rows with each kind of planted trouble."""

    dead_link: float = Field(default=0.03, ge=0, le=1, description="the server answers 404")
    truncated: float = Field(default=0.015, ge=0, le=1, description="the image file ends early")
    mislabelled: float = Field(default=0.015, ge=0, le=1, description="an HTML page under an image type")
    tiny: float = Field(default=0.02, ge=0, le=1, description="8 to 24 pixels a side")
    extreme_aspect: float = Field(default=0.02, ge=0, le=1, description="longer side five to eight times the shorter")
    exact_duplicate: float = Field(default=0.03, ge=0, le=1, description="the bytes of an earlier row")
    near_duplicate: float = Field(
        default=0.03, ge=0, le=1, description="an earlier row resized, brightened or darkened, re-encoded"
    )
    wrong_caption: float = Field(default=0.04, ge=0, le=1, description="the caption of another image")
    boilerplate: float = Field(default=0.03, ge=0, le=1, description="a caption without content")

    @model_validator(mode="after")
    def _check(self) -> TroubleRates:
        if (total := sum(rate for _, rate in self)) > 0.9:
            raise ValueError(f"trouble rates add up to {total:.2f}; keep the sum at or below 0.9")
        return self


TROUBLES = tuple(TroubleRates.model_fields)


class ScenesConfig(Config):
    """Number, size, languages and planted trouble of the scenes."""

    count: int = Field(default=4000, ge=1, description="rows of the listing, including those with planted trouble")
    image_size: int = Field(default=256, ge=32, le=2048, description="pixels a side")
    chinese_share: float = Field(
        default=0.25, ge=0, le=1, description="share of Chinese captions; the rest are English"
    )
    related_share: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="share of images with two groups in a relation; above the share of prompts, since they are hardest",
    )
    purple_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of images with a purple group, a colour that is new to the demo's model",
    )
    trouble: TroubleRates = Field(default=TroubleRates(), description="share of rows with each kind of planted trouble")
