"""Filters on what the list's authors, or a head over CLIP features, predict of an image: unsafe, watermark, aesthetics.

A value comes from the head's column in "scores" if there is one, else from the list.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import Field, create_model, model_validator

from dataprep.filters.base import LIST_HAS, Filter, RowFilter, pick_available, read_floats, round_limit
from dataprep.io.config import Config
from dataprep.io.scorer_heads import HEADS

if TYPE_CHECKING:
    import pyarrow as pa


class NsfwLabelKeys(Config):
    """Keys of `NsfwLabel`."""

    drop_nsfw_labels: tuple[str, ...] | None = Field(
        default=None, strict=False, description="labels of the list's NSFW column to drop, such as [NSFW, UNSURE]"
    )


class NsfwLabel(RowFilter):
    """Drops rows that the list labels with one of ``labels`` (LAION: UNLIKELY, UNSURE, NSFW), case-insensitively."""

    keys = NsfwLabelKeys
    off: ClassVar = {"drop_nsfw_labels": None}
    remedies: ClassVar = {"listed_nsfw": ("select.drop_nsfw_labels", LIST_HAS)}
    columns = ("listed_nsfw",)

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = frozenset(label.strip().upper() for label in labels)

    @classmethod
    def from_config(cls, config: NsfwLabelKeys, available: Collection[str]) -> Self | None:
        return cls(config.drop_nsfw_labels) if config.drop_nsfw_labels else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        keep = [(label or "").strip().upper() not in self.labels for label in rows["listed_nsfw"].to_pylist()]
        return np.array(keep, dtype=bool), f"labelled {', '.join(sorted(self.labels))}"


class MaxProbability(RowFilter):
    """Keeps rows whose ``measured`` probability is below ``most``, as LAION does; drops rows without one."""

    key: ClassVar[str]
    sources: ClassVar[tuple[str, str]]  # column of the head, column of the list

    def __init__(self, measured: str, most: float) -> None:
        self.columns, self.most = (measured,), most

    @classmethod
    def from_config(cls, config: Any, available: Collection[str]) -> Self | None:
        most = getattr(config, cls.key)
        return None if most is None else cls(pick_available(available, *cls.sources), most)

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        most = round_limit(rows, measured, self.most)
        return read_floats(rows, measured) < most, f"{measured} not below {self.most:g}"


def limit_head(name: str, head: str, description: str) -> type[Filter]:
    """Makes the filter ``name`` with key ``<name>_below`` on column ``head`` or, without that, ``listed_<name>``."""
    key, listed = f"{name}_below", f"listed_{name}"
    fields: Any = {key: (float | None, Field(default=None, ge=0, le=1, description=description))}
    members = {
        "keys": create_model(f"{name.capitalize()}Keys", __base__=Config, __module__=__name__, **fields),
        "off": {key: None},
        "remedies": {listed: (f"select.{key}", f"{LIST_HAS}, or set score.heads.{head}")},
        "key": key,
        "sources": (head, listed),
    }
    return type(f"Max{name.capitalize()}", (MaxProbability,), members)


HEAD_FILTERS = {
    head.limit.name: limit_head(head.limit.name, column, head.limit.description)
    for column, head in HEADS.items()
    if head.limit is not None
}


class AestheticKeys(Config):
    """Keys of `Aesthetic`."""

    min_aesthetic: float | None = Field(
        default=None, description="minimum aesthetic score, of a head or the list (SD: 5)"
    )
    aesthetic_above: float | None = Field(default=None, description="keep above this aesthetic score (LAION: 7)")

    @model_validator(mode="after")
    def _check_aesthetic(self) -> Self:
        if self.min_aesthetic is not None and self.aesthetic_above is not None:
            raise ValueError("min_aesthetic and aesthetic_above are both set; set one of them to null")
        return self


class Aesthetic(RowFilter):
    """Keeps rows with an aesthetic score of at least ``least``, or above it if ``strict``; drops rows without one."""

    keys = AestheticKeys
    off: ClassVar = {"min_aesthetic": None, "aesthetic_above": None}
    remedies: ClassVar = {"listed_aesthetic": ("select.min_aesthetic", f"{LIST_HAS}, or set score.heads.aesthetic")}

    def __init__(self, measured: str, least: float, strict: bool) -> None:
        self.columns, self.least, self.strict = (measured,), least, strict

    @classmethod
    def from_config(cls, config: AestheticKeys, available: Collection[str]) -> Self | None:
        measured = pick_available(available, "aesthetic", "listed_aesthetic")
        if config.aesthetic_above is not None:
            return cls(measured, config.aesthetic_above, strict=True)
        return None if config.min_aesthetic is None else cls(measured, config.min_aesthetic, strict=False)

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        value_N, least = read_floats(rows, measured), round_limit(rows, measured, self.least)
        if self.strict:
            return value_N > least, f"{measured} not above {self.least:g}"
        return value_N >= least, f"{measured} below {self.least:g}"
