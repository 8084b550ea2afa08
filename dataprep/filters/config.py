"""Config of the selection, put together from the keys of all filters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import Field, create_model, model_validator

from dataprep.filters.base import Filter, RowFilter, SetFilter
from dataprep.filters.presets import expand_recipe
from dataprep.filters.registry import FILTERS
from dataprep.io.config import Config
from dataprep.io.errors import UserError


class RecipeKeys(Config):
    """The key that presets all others."""

    recipe: str | None = Field(
        default=None,
        description="filters of a published dataset; keys given beside it override its own: datacomp-basic, "
        "datacomp-clip-top30, laion-2b-en, laion-400m, laion-aesthetic, sd-v1",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_recipe(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("recipe"), str):
            return expand_recipe(given["recipe"]) | given
        return given


def _join_keys(filters: Mapping[str, type[Filter]]) -> type[Config]:
    """Returns a config class with the keys of all ``filters``, in their order, and all checks on them."""
    classes = dict.fromkeys(cls.keys for cls in reversed(list(filters.values())) if cls.keys is not Config)
    return create_model("FilterKeys", __base__=(*classes, RecipeKeys))  # fields of later bases come first


class SelectConfig(_join_keys(FILTERS)):  # type: ignore[misc]  # the base is made from the registry
    """Which pairs to keep. A filter whose key is null (or 0 for a count) is off."""

    validation_fraction: float = Field(
        default=0.02, ge=0, lt=1, description="share held out of training, chosen by the image's hash"
    )


def make_filters(
    config: SelectConfig, available: Collection[str], min_similarity: float | None = None
) -> dict[str, RowFilter]:
    """Returns the row filters that are on, by name, in their order.

    ``available`` are the columns of this run; of several columns for one quantity the first is read.
    ``min_similarity`` overrides the config's. Raises UserError for a missing column.
    """
    if min_similarity is not None:
        config = config.model_copy(update={"min_similarity": min_similarity})
    return {name: rule for name, rule in _make_all(config, available).items() if isinstance(rule, RowFilter)}


def make_set_filters(config: SelectConfig, available: Collection[str]) -> dict[str, SetFilter]:
    """Returns the set filters that are on, by name, in their order. Raises UserError for a missing column."""
    return {name: rule for name, rule in _make_all(config, available).items() if isinstance(rule, SetFilter)}


def _make_all(config: SelectConfig, available: Collection[str]) -> dict[str, Filter]:
    made = {name: cls.from_config(config, available) for name, cls in FILTERS.items()}
    filters = {name: rule for name, rule in made.items() if rule is not None}
    for name, rule in filters.items():
        for column in rule.columns:
            if column not in available:
                default = (f"select ({name})", "run the stages before it again")
                key, remedy = rule.remedies.get(column, default)
                raise UserError(f"{key}: needs the column {column}, which is missing; {remedy}")
    return filters
