"""Which pairs are kept: the config of the rules, and the filters that it stands for, in their order."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dataprep.filters.base import Filter, SetFilter
from dataprep.filters.caption import (
    BOILERPLATE_PATTERNS,
    AlphaShare,
    Boilerplate,
    CaptionLength,
    CaptionWords,
    Language,
)
from dataprep.filters.image import Area, Downloaded, FileSize, MaxAspect, MinSide
from dataprep.filters.listed import Aesthetic, Below, Labels
from dataprep.filters.near import EmbeddingDuplicates, NearDuplicates
from dataprep.filters.recipes import rules
from dataprep.filters.repeated import duplicate_pairs, exact_duplicates, repeated_captions
from dataprep.filters.similarity import MinSimilarity, TopSimilarity
from dataprep.schema import Config, UserError

# Every filter in the order of `make_filters` and `make_set_filters`.
ALL_FILTERS = (
    *("downloaded", "max_aspect", "min_side", "area", "file_size"),
    *("boilerplate", "caption_chars", "caption_words", "alpha_share", "language"),
    *("nsfw_label", "unsafe", "watermark", "aesthetic", "min_similarity"),
    *("top_similarity", "duplicate_pair", "repeated_caption"),
    *("exact_duplicate", "near_duplicate", "embedding_duplicate"),
)
LIST_HAS = "give a list that has one (see listing.layout)"
# column -> the key that asks for it, and what to do where it is missing.
REMEDIES = {
    "clip_similarity": ("select.similarity=score", "the score stage gives it; run it"),
    "clip_embedding": ("select.near_duplicate_cosine", "set score.embeddings=true"),
    "listed_similarity_b32": ("select.similarity=listed_similarity_b32", f"{LIST_HAS}, or set select.similarity=score"),
    "listed_similarity_l14": ("select.similarity=listed_similarity_l14", f"{LIST_HAS}, or set select.similarity=score"),
    "listed_language": ("select.language_from=listed", f"{LIST_HAS}, or set select.language_from=caption"),
    "listed_nsfw": ("select.drop_nsfw_labels", LIST_HAS),
    "listed_aesthetic": ("select.min_aesthetic", f"{LIST_HAS}, or set score.heads.aesthetic"),
    "listed_unsafe": ("select.unsafe_below", f"{LIST_HAS}, or set score.heads.nsfw"),
    "listed_watermark": ("select.watermark_below", f"{LIST_HAS}, or set score.heads.watermark"),
}


class SelectConfig(Config):
    """What is kept. A rule set to null (or 0 where it counts) is off."""

    recipe: str | None = Field(
        default=None,
        description="rules of a published dataset, which keys given beside it override: datacomp-basic, "
        "datacomp-clip-top30, laion-2b-en, laion-400m, laion-aesthetic, sd-v1",
    )
    min_side: int = Field(default=64, ge=0, description="least shorter side of the original, pixels (DataComp: 200)")
    max_aspect: float | None = Field(default=3.0, ge=1, description="longer side / shorter side (DataComp: 3)")
    min_area: int = Field(default=0, ge=0, description="least width x height of the original, pixels")
    max_area: int | None = Field(default=None, ge=1, description="most width x height of the original, pixels")
    min_bytes: int = Field(default=0, ge=0, description="least bytes of the file: as fetched where known, else stored")
    max_bytes: int | None = Field(default=None, ge=1, description="most bytes of the file")
    min_caption_chars: int = Field(default=5, ge=0, description="least characters of a caption (LAION: 5)")
    max_caption_chars: int | None = Field(default=1000, ge=1, description="most characters of a caption")
    min_caption_words: int = Field(default=2, ge=0, description="least words")
    max_caption_words: int | None = Field(default=256, ge=1, description="most words")
    words: Literal["scripts", "spaces"] = Field(
        default="scripts", description="scripts: a Chinese character counts as a word; spaces: what spaces separate"
    )
    min_alpha_share: float = Field(
        default=0.5, ge=0, le=1, description="least share of letters among the visible characters"
    )
    drop_boilerplate: bool = Field(default=True, description="drop captions that boilerplate_patterns match as a whole")
    boilerplate_patterns: tuple[str, ...] = Field(
        default=BOILERPLATE_PATTERNS, strict=False, description="regular expressions of captions that say nothing"
    )
    languages: tuple[str, ...] | None = Field(
        default=None, strict=False, description="languages kept, ISO 639-1; null: all"
    )
    language_from: Literal["caption", "listed"] = Field(
        default="caption", description="caption: told by the classifier; listed: the column that came with the list"
    )
    drop_nsfw_labels: tuple[str, ...] | None = Field(
        default=None, strict=False, description="labels of the list's NSFW column to drop, such as [NSFW, UNSURE]"
    )
    unsafe_below: float | None = Field(
        default=None, ge=0, le=1, description="keep below this probability of NSFW, by a head or the list (LAION: 0.5)"
    )
    watermark_below: float | None = Field(
        default=None, ge=0, le=1, description="keep below this probability of a watermark (LAION: 0.8, SD: 0.5)"
    )
    min_aesthetic: float | None = Field(
        default=None, description="least aesthetic score, by a head or the list (SD: 5)"
    )
    aesthetic_above: float | None = Field(default=None, description="keep above this aesthetic score (LAION: 7)")
    min_similarity: float | None = Field(
        default=None, ge=-1, le=1, description="least CLIP similarity; clip.min_similarity counts instead where set"
    )
    top_similarity: float | None = Field(
        default=None, gt=0, le=1, description="keep this share by CLIP similarity (DataComp: 0.3)"
    )
    similarity: Literal["score", "listed_similarity_b32", "listed_similarity_l14"] = Field(
        default="score", description="whose similarity: this run's CLIP, or the list's by ViT-B/32 or ViT-L/14"
    )
    duplicate_pairs: bool = Field(default=False, description="drop rows whose URL and caption were both seen before")
    max_caption_repeats: int | None = Field(
        default=None, ge=1, description="keep the first so many rows of a caption; null: all"
    )
    exact_duplicates: bool = Field(default=True, description="drop images whose stored bytes were seen before")
    near_duplicate_bits: int | None = Field(
        default=6, ge=0, le=16, description="drop images within so many bits of an earlier perceptual hash; null: off"
    )
    near_duplicate_colour: float = Field(
        default=4.0, ge=0, description="and within so many grey levels in the worst cell of the 8x8 thumbnail"
    )
    near_duplicate_cosine: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="drop images whose CLIP features have at least this cosine with an earlier one's (0.96, say); "
        "time grows with the square of the rows; null: off",
    )
    validation_fraction: float = Field(
        default=0.02, ge=0, lt=1, description="share held out of training, by the image's hash"
    )

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("recipe"), str):
            return rules(given["recipe"]) | given
        return given

    @field_validator("boilerplate_patterns")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression ({error}); correct it") from error
        return patterns

    @model_validator(mode="after")
    def _ranges(self) -> SelectConfig:
        for unit in ("caption_chars", "caption_words", "area", "bytes"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if most is not None and least > most:
                raise ValueError(f"min_{unit} {least} is above max_{unit} {most}; lower it")
        if self.min_aesthetic is not None and self.aesthetic_above is not None:
            raise ValueError("min_aesthetic and aesthetic_above are both set; set one of them to null")
        return self


def make_filters(config: SelectConfig, available: Collection[str], min_similarity: float | None = None) -> list[Filter]:
    """The filters of single rows that are on, in their order: cheap facts first.

    ``available`` are the columns that there are; where a quantity may come from several, the first of them counts.
    ``min_similarity`` counts instead of the config's. Raises UserError for a column that is missing.
    """
    filters: list[Filter] = [Downloaded(), *_image_filters(config, available), *_caption_filters(config)]
    if config.drop_nsfw_labels:
        filters.append(Labels(config.drop_nsfw_labels))
    if config.unsafe_below is not None:
        filters.append(Below("unsafe", _first(available, "nsfw", "listed_unsafe"), config.unsafe_below))
    if config.watermark_below is not None:
        filters.append(Below("watermark", _first(available, "watermark", "listed_watermark"), config.watermark_below))
    aesthetic = _first(available, "aesthetic", "listed_aesthetic")
    if config.aesthetic_above is not None:
        filters.append(Aesthetic(aesthetic, config.aesthetic_above, strict=True))
    elif config.min_aesthetic is not None:
        filters.append(Aesthetic(aesthetic, config.min_aesthetic, strict=False))
    least = config.min_similarity if min_similarity is None else min_similarity
    if least is not None:
        filters.append(MinSimilarity(least, _similarity(config)))
    _check(filters, available)
    return filters


def make_set_filters(config: SelectConfig, available: Collection[str]) -> list[SetFilter]:
    """The filters of all rows together that are on, after those of single rows: duplicates last, so that what stays is
    the first occurrence among pictures that passed everything else. Raises UserError for a column that is missing."""
    filters: list[SetFilter] = []
    if config.top_similarity is not None:
        filters.append(TopSimilarity(config.top_similarity, _similarity(config)))
    if config.duplicate_pairs:
        filters.append(duplicate_pairs())
    if config.max_caption_repeats is not None:
        filters.append(repeated_captions(config.max_caption_repeats))
    if config.exact_duplicates:
        filters.append(exact_duplicates())
    if config.near_duplicate_bits is not None:
        filters.append(NearDuplicates(config.near_duplicate_bits, config.near_duplicate_colour))
    if config.near_duplicate_cosine is not None:
        filters.append(EmbeddingDuplicates(config.near_duplicate_cosine))
    _check(filters, available)
    return filters


def _image_filters(config: SelectConfig, available: Collection[str]) -> list[Filter]:
    filters: list[Filter] = []
    if config.max_aspect is not None:
        filters.append(MaxAspect(config.max_aspect))
    if config.min_side:
        filters.append(MinSide(config.min_side))
    if config.min_area or config.max_area is not None:
        filters.append(Area(config.min_area, config.max_area))
    if config.min_bytes or config.max_bytes is not None:
        filters.append(FileSize(config.min_bytes, config.max_bytes, _first(available, "original_bytes", "bytes")))
    return filters


def _caption_filters(config: SelectConfig) -> list[Filter]:
    filters: list[Filter] = []
    if config.drop_boilerplate and config.boilerplate_patterns:
        filters.append(Boilerplate(config.boilerplate_patterns))
    if config.min_caption_chars or config.max_caption_chars is not None:
        filters.append(CaptionLength(config.min_caption_chars, config.max_caption_chars))
    if config.min_caption_words or config.max_caption_words is not None:
        filters.append(CaptionWords(config.min_caption_words, config.max_caption_words, config.words == "spaces"))
    if config.min_alpha_share:
        filters.append(AlphaShare(config.min_alpha_share))
    if config.languages is not None:
        filters.append(
            Language(config.languages, "language" if config.language_from == "caption" else "listed_language")
        )
    return filters


def _similarity(config: SelectConfig) -> str:
    return "clip_similarity" if config.similarity == "score" else config.similarity


def _first(available: Collection[str], *names: str) -> str:
    """The first of ``names`` that is available, or the last of them."""
    return next((name for name in names if name in available), names[-1])


def _check(filters: list[Any], available: Collection[str]) -> None:
    for rule in filters:
        for name in rule.columns:
            if name not in available:
                key, remedy = REMEDIES.get(name, (f"select ({rule.name})", "run the stages before it again"))
                raise UserError(f"{key}: needs the column {name}, which is missing; {remedy}")
