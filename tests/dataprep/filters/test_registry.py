"""The registry of filters, and a filter that is added to it from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import pytest
from pydantic import Field

from dataprep.filters.base import RowFilter, SetFilter, read_floats
from dataprep.filters.config import SelectConfig
from dataprep.filters.presets import RECIPES
from dataprep.filters.registry import FILTERS
from dataprep.io.config import Config
from dataprep.synthetic.config import TROUBLES
from tests.helpers.selection import reasons, row

HEAVY = ("torch", "transformers", "cv2", "scipy", "faiss", "imagehash", "py3langid", "aiohttp", "s3fs", "PIL")


class EvenWidthKeys(Config):
    drop_odd_widths: bool = Field(default=True, description="drop originals of odd width")


class EvenWidth(RowFilter):
    """A filter that is on by default."""

    keys = EvenWidthKeys
    off: ClassVar = {"drop_odd_widths": False}
    columns = ("width",)

    @classmethod
    def from_config(cls, config: EvenWidthKeys, available: Collection[str]) -> Self | None:
        return cls() if config.drop_odd_widths else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return read_floats(rows, "width") % 2 == 0, "odd width"


class ExtendedConfig(SelectConfig, EvenWidthKeys):
    """The config with the filter in the registry."""


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILTERS, "even_width", EvenWidth)


@pytest.mark.usefixtures("registered")
def test_a_filter_from_outside_runs_through_select() -> None:
    rows = [row(0), row(1, width=101), row(2)]
    assert reasons(rows, ExtendedConfig()) == [None, "even_width", None]
    assert reasons(rows, ExtendedConfig(drop_odd_widths=False)) == [None, None, None]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_turns_off_a_new_filter_that_is_on_by_default(recipe: str) -> None:
    assert ExtendedConfig.model_validate({"recipe": recipe}).drop_odd_widths is False


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leaves_on_only_filters_that_it_sets(recipe: str) -> None:
    keys = set(RECIPES[recipe])
    config = SelectConfig(recipe=recipe)
    available = {column for cls in FILTERS.values() for column in [*cls.remedies, *getattr(cls, "columns", ())]}
    available |= {"original_bytes", "language", "caption", "caption_words"}
    on = [name for name, cls in FILTERS.items() if cls.from_config(config, available) is not None]
    assert on == ["downloaded", *(name for name, cls in FILTERS.items() if keys & set(cls.off))]


@pytest.mark.parametrize("name", FILTERS)
def test_off_values_turn_the_filter_off(name: str) -> None:
    cls = FILTERS[name]
    assert set(cls.off) <= set(cls.keys.model_fields) <= set(SelectConfig.model_fields)
    if name != "downloaded":
        assert cls.from_config(cls.keys(**cls.off), ()) is None


def test_row_filters_come_before_set_filters() -> None:
    kinds = [issubclass(cls, SetFilter) for cls in FILTERS.values()]
    assert kinds == sorted(kinds)


def test_filters_catch_every_kind_of_planted_trouble_and_no_other() -> None:
    assert {kind for cls in FILTERS.values() for kind in cls.catches} == set(TROUBLES)


def test_the_registry_imports_nothing_heavy() -> None:
    code = f"import dataprep.filters.config, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
