"""Which pairs are trained on: the filters in order, the funnel they make, the split, and how right the filters were.

Everything here reads columns; no image is opened. Changing a threshold costs this stage and what follows it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from dataprep.filters.base import Filter
from dataprep.filters.caption import (
    BOILERPLATE_PATTERNS,
    AlphaShare,
    Boilerplate,
    CaptionLength,
    CaptionWords,
    Language,
)
from dataprep.filters.duplicates import ExactDuplicates, NearDuplicates
from dataprep.filters.image import Downloaded, MaxAspect, MinSide
from dataprep.filters.similarity import MinSimilarity, TopSimilarity
from dataprep.redact import FORGOTTEN
from dataprep.schema import Config, UserError

TRAIN, VALIDATION = "train", "validation"
SCHEMA = pa.schema({"key": pa.string(), "keep": pa.bool_(), "reason": pa.string(), "split": pa.string()})
CAPTION_FILTERS = frozenset({"boilerplate", "caption_chars", "caption_words", "alpha_share", "language"})
# Trouble planted in the embedded corpus -> the filters that are there to catch it.
TARGETS: dict[str, frozenset[str]] = {
    "dead_link": frozenset({"downloaded"}),
    "truncated": frozenset({"downloaded"}),
    "mislabelled": frozenset({"downloaded"}),
    "tiny": frozenset({"min_side"}),
    "extreme_aspect": frozenset({"max_aspect", "min_side"}),
    "exact_duplicate": frozenset({"exact_duplicate", "near_duplicate"}),
    "near_duplicate": frozenset({"exact_duplicate", "near_duplicate"}),
    "wrong_caption": frozenset({"min_similarity", "top_similarity"}),
    "boilerplate": CAPTION_FILTERS | {"min_similarity", "top_similarity"},
}
# Every filter in the order of `make_filters`.
ALL_FILTERS = (
    *("downloaded", "max_aspect", "min_side"),
    *("boilerplate", "caption_chars", "caption_words", "alpha_share", "language"),
    *("min_similarity", "top_similarity"),
    *("exact_duplicate", "near_duplicate"),
)
DUPLICATES = ("exact_duplicate", "near_duplicate")


class SelectConfig(Config):
    """What is kept. A rule set to null (or 0 where it counts) is off."""

    min_side: int = Field(default=64, ge=0, description="least shorter side of the original, pixels (DataComp: 200)")
    max_aspect: float | None = Field(default=3.0, ge=1, description="longer side / shorter side (DataComp: 3)")
    min_caption_chars: int = Field(default=5, ge=0, description="least characters of a caption (LAION: 5)")
    max_caption_chars: int = Field(default=1000, ge=1, description="most characters of a caption")
    min_caption_words: int = Field(default=2, ge=0, description="least words; a Chinese character counts as one")
    max_caption_words: int = Field(default=256, ge=1, description="most words")
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
    top_similarity: float | None = Field(
        default=None, gt=0, le=1, description="keep this share by CLIP similarity (DataComp: 0.3)"
    )
    exact_duplicates: bool = Field(default=True, description="drop images whose stored bytes were seen before")
    near_duplicate_bits: int | None = Field(
        default=6, ge=0, le=16, description="drop images within so many bits of an earlier perceptual hash; null: off"
    )
    near_duplicate_colour: float = Field(
        default=4.0, ge=0, description="and within so many grey levels in the worst cell of the 8x8 thumbnail"
    )
    validation_fraction: float = Field(
        default=0.02, ge=0, lt=1, description="share held out of training, by the image's hash"
    )

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
        for unit in ("chars", "words"):
            least, most = getattr(self, f"min_caption_{unit}"), getattr(self, f"max_caption_{unit}")
            if least > most:
                raise ValueError(f"min_caption_{unit} {least} is above max_caption_{unit} {most}; lower it")
        return self


def make_filters(config: SelectConfig, min_similarity: float | None) -> list[Filter]:
    """The filters that are on, in their order: cheap facts first, duplicates last, so that what stays is the first
    occurrence among pictures that passed everything else."""
    filters: list[Filter] = [Downloaded()]
    if config.max_aspect is not None:
        filters.append(MaxAspect(config.max_aspect))
    filters.append(MinSide(config.min_side))
    if config.drop_boilerplate and config.boilerplate_patterns:
        filters.append(Boilerplate(config.boilerplate_patterns))
    filters.append(CaptionLength(config.min_caption_chars, config.max_caption_chars))
    filters.append(CaptionWords(config.min_caption_words, config.max_caption_words))
    filters.append(AlphaShare(config.min_alpha_share))
    if config.languages is not None:
        filters.append(Language(config.languages))
    if min_similarity is not None:
        filters.append(MinSimilarity(min_similarity))
    if config.top_similarity is not None:
        filters.append(TopSimilarity(config.top_similarity))
    if config.exact_duplicates:
        filters.append(ExactDuplicates())
    if config.near_duplicate_bits is not None:
        filters.append(NearDuplicates(config.near_duplicate_bits, config.near_duplicate_colour))
    return filters


def select(
    annotations: Sequence[pa.Table],
    scores: Sequence[pa.Table] | None,
    config: SelectConfig,
    min_similarity: float | None = None,
) -> tuple[list[pa.Table], list[dict[str, Any]]]:
    """Decides over all shards together: (a selection table a shard, row-aligned; the funnel, a dict a filter).

    A selection row: key, keep, reason (null where kept, else "filter: why"), split ("train" or "validation", null
    where dropped). A funnel row: filter, in, dropped, kept, reason. Raises UserError where nothing is left, naming
    the filter that dropped most.
    """
    rows = _joined(annotations, scores)
    reasons = np.full(rows.num_rows, None, dtype=object)
    left_M = np.arange(rows.num_rows)
    funnel: list[dict[str, Any]] = []
    for rule in make_filters(config, min_similarity):
        keep_M, reason = rule.verdict(rows.take(pa.array(left_M))) if len(left_M) else (np.zeros(0, bool), "")
        reasons[left_M[~keep_M]] = f"{rule.name}: {reason}"
        funnel.append(
            {"filter": rule.name, "in": len(left_M), "dropped": int((~keep_M).sum()), "kept": int(keep_M.sum())}
            | {"reason": reason}
        )
        left_M = left_M[keep_M]
    if len(left_M) == 0:
        worst = max(funnel, key=lambda step: step["dropped"])
        raise UserError(
            f"select: nothing is left of {rows.num_rows} rows; {worst['filter']} dropped {worst['dropped']} "
            f"({worst['reason']}): loosen it or check the source"
        )
    selected = _selection_table(rows, reasons, config.validation_fraction)
    offsets = np.cumsum([0, *(table.num_rows for table in annotations)])
    return [
        selected.slice(start, table.num_rows) for start, table in zip(offsets[:-1], annotations, strict=True)
    ], funnel


def _joined(annotations: Sequence[pa.Table], scores: Sequence[pa.Table] | None) -> pa.Table:
    """All shards in one table, scores beside their rows."""
    rows = pa.concat_tables(annotations)
    if scores is None:
        return rows.append_column("clip_similarity", pa.nulls(rows.num_rows, pa.float32()))
    joined = pa.concat_tables([table.select(["key", "clip_similarity"]) for table in scores])
    if not joined["key"].combine_chunks().equals(rows["key"].combine_chunks()):
        raise ValueError("scores and annotations are not of the same rows; score the shards again")
    return rows.append_column("clip_similarity", joined["clip_similarity"])


def _selection_table(rows: pa.Table, reasons: np.ndarray, validation_fraction: float) -> pa.Table:
    """Kept rows get their split by the hash of the stored image: the same picture is on the same side in every run."""
    splits = [
        None if reason is not None else VALIDATION if int(digest[:8], 16) / 2**32 < validation_fraction else TRAIN
        for reason, digest in zip(reasons, rows["sha256"].to_pylist(), strict=True)
    ]
    columns = {"key": rows["key"].combine_chunks(), "keep": pa.array([reason is None for reason in reasons])}
    return pa.table(columns | {"reason": pa.array(reasons), "split": pa.array(splits)}, schema=SCHEMA)


def filter_quality(downloads: Sequence[pa.Table], selection: Sequence[pa.Table]) -> dict[str, Any] | None:
    """How right the filters were, where the listing's column ``truth`` says what trouble was planted; else None.

    "troubles": a kind -> planted, dropped, reasons {filter: rows}. "clean": rows without trouble, dropped, reasons.
    "filters": a filter -> dropped, right (dropped with a trouble it is there for), precision = right / dropped,
    recall = right / rows of such trouble that reached it (a duplicate counts where its original is there too);
    null where the denominator is 0.
    """
    if not downloads or any("truth" not in table.column_names for table in downloads):
        return None
    # A row that is forgotten says nothing of itself, and counts for nothing.
    unknown = json.dumps({"trouble": FORGOTTEN, "of": None})
    truths = [json.loads(truth or unknown) for table in downloads for truth in table["truth"].to_pylist()]
    dropped_by = [reason and reason.split(":")[0] for table in selection for reason in table["reason"].to_pylist()]
    troubles, clean = _per_trouble(truths, dropped_by)
    order = [name for name in ALL_FILTERS if name in dropped_by]
    return {"troubles": troubles, "clean": clean, "filters": {name: _judge(name, truths, dropped_by) for name in order}}


def _per_trouble(truths: list[dict[str, Any]], dropped_by: list[str | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    counted: dict[str | None, Counter[str | None]] = {}
    for truth, name in zip(truths, dropped_by, strict=True):
        counted.setdefault(truth["trouble"], Counter())[name] += 1
    counted.pop(FORGOTTEN, None)
    described = {
        kind: {
            "planted": reasons.total(),
            "dropped": reasons.total() - reasons[None],
            "reasons": {name: reasons[name] for name in ALL_FILTERS if reasons[name]},
        }
        for kind, reasons in counted.items()
    }
    clean = described.pop(None, {"planted": 0, "dropped": 0, "reasons": {}})
    clean["rows"] = clean.pop("planted")
    return {str(kind): described[kind] for kind in sorted(described, key=str)}, clean


def _judge(name: str, truths: list[dict[str, Any]], dropped_by: list[str | None]) -> dict[str, Any]:
    """One filter against the truth."""
    stages: dict[str | None, int] = {stage: index for index, stage in enumerate(ALL_FILTERS)}
    stages[None] = len(ALL_FILTERS)
    dropped = right = meant = caught = 0
    for truth, by in zip(truths, dropped_by, strict=True):
        kind = truth["trouble"]
        targeted = kind is not None and name in TARGETS.get(kind, ())
        dropped += by == name
        right += by == name and targeted
        reached = targeted and stages[by] >= stages[name]
        if reached and kind in DUPLICATES:
            original = truth["of"]
            reached = original < len(dropped_by) and stages[dropped_by[original]] >= stages[name]
            # What is there for both exact and near duplicates is meant to be caught by the filter of its own kind.
            reached = reached and kind == name
        meant += reached
        caught += reached and by == name
    precision, recall = (right / dropped if dropped else None), (caught / meant if meant else None)
    return {"dropped": dropped, "right": right, "precision": precision, "recall": recall}
