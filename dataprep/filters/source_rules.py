"""Row filters per source: which config judges the rows of a shard, whose source has thresholds of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from dataprep.filters.base import RowFilter
from dataprep.filters.config import SelectConfig, make_filters
from dataprep.filters.registry import FILTERS
from dataprep.io.errors import UserError

ALL = ""  # name of the rules of rows of no source in particular


def list_source_keys() -> list[str]:
    """Returns the keys of ``select`` that a source may set: those of filters that judge each row alone."""
    by_kind: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for rule in FILTERS.values():
        by_kind[issubclass(rule, RowFilter)] |= dict.fromkeys(rule.keys.model_fields)
    return [key for key in by_kind[True] if key not in by_kind[False]]


def check_source_keys(given: Mapping[str, Any]) -> None:
    """Raises ValueError for a key that cannot be of a source, naming those that can, and for a wrong value."""
    keys = list_source_keys()
    for key in given:
        if key in keys:
            continue
        if key in SelectConfig.model_fields:
            raise ValueError(
                f"{key} is for the rows of all sources together; set it in section select. A source may set "
                f"{', '.join(keys)}"
            )
        raise ValueError(f"{key}: unknown key; a source may set {', '.join(keys)}")
    merge_source_keys(SelectConfig(), given)


def merge_source_keys(config: SelectConfig, given: Mapping[str, Any]) -> SelectConfig:
    """Returns ``config`` with the keys of a source in place of its own; ValueError for values that do not fit."""
    try:
        return SelectConfig.model_validate(config.model_dump(exclude={"recipe"}) | dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from error


@dataclass(frozen=True)
class SourceRules:
    """Thresholds by source.

    Attributes:
        keys: source -> the keys of ``select`` that it sets; sources that set none need not be here.
        starts: source -> the number of its first shard, where there are several sources; a shard is of one.
    """

    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    starts: Mapping[str, int] = field(default_factory=dict)

    def find_source(self, shard: int) -> str:
        """Returns the source of a shard; `ALL` if there is but one."""
        if not self.starts:
            return ALL
        names = sorted(self.starts, key=lambda name: self.starts[name])
        return names[max(0, bisect_right([self.starts[name] for name in names], shard) - 1)]

    def make_filters(
        self, config: SelectConfig, available: Collection[str], min_similarity: float | None
    ) -> dict[str, dict[str, RowFilter]]:
        """Returns the row filters of each source, by name, in their order; of `ALL` where there are no sources.

        ``min_similarity`` overrides the config's, and a source's own overrides both. Raises UserError for a column that
        is missing.
        """
        made = {}
        for source in self.starts or (ALL,):
            given = self.keys.get(source, {})
            own = merge_source_keys(config, given) if given else config
            try:
                made[source] = make_filters(own, available, None if "min_similarity" in given else min_similarity)
            except UserError as error:
                raise (UserError(f"listing.sources.{source}.{error}") if given else error) from error
        return made


def list_filter_names(filters: Mapping[str, Mapping[str, RowFilter]]) -> list[str]:
    """Returns the names of the filters that any source has, in their order."""
    return [name for name in FILTERS if any(name in own for own in filters.values())]
