"""Base classes of filters.

A filter is one class: its config keys, how it is made from them, which columns it reads and what it decides.
`dataprep.filters.registry.FILTERS` lists all of them. A `RowFilter` judges each row alone. A `SetFilter` judges rows
among all others, by steps over groups of shards that exchange records.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa

    from dataprep.filters.left_rows import LeftRows, Verdicts

LIST_HAS = "give a list that has one (see listing.layout)"
Remedy = tuple[str, str]  # the key that asks for a column, and what to do if the column is missing


class Filter:
    """A named rule over rows of kind "annotations", extended by the columns of "scores" and of the list."""

    keys: ClassVar[type[Config]]
    """The keys that the filter adds to ``select``."""
    off: ClassVar[Mapping[str, Any]]
    """Values of ``keys`` that turn the filter off."""
    remedies: ClassVar[Mapping[str, Remedy]] = {}
    """Column -> remedy, for columns that not every run has."""
    catches: ClassVar[frozenset[str]] = frozenset()
    """Kinds of planted trouble that the filter is meant to drop, see `dataprep.synthetic.config.TroubleRates`."""
    columns: tuple[str, ...]
    """Columns that the filter reads."""

    @classmethod
    def from_config(cls, config: Any, available: Collection[str]) -> Self | None:
        """Makes the filter from a config that has ``keys``; None if it is off.

        ``available`` are the columns of this run, for filters that can read a value from several columns.
        """
        raise NotImplementedError


class RowFilter(Filter):
    """A filter that judges each row alone."""

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        """Returns bool (N,), True for rows to keep, and the reason why the others are dropped."""
        raise NotImplementedError


class SetFilter(Filter):
    """A filter that judges all rows together, in their order. A frozen dataclass: workers get it as an argument."""

    @property
    def reason(self) -> str:
        """Why the filter drops rows."""
        raise NotImplementedError

    def decide(self, rows: LeftRows) -> Verdicts:
        """Runs steps over the rows that earlier filters left and returns which of them to drop.

        The verdicts must not depend on how rows are dealt out to tasks.
        """
        raise NotImplementedError


def read_floats(rows: pa.Table, name: str) -> np.ndarray:
    """Returns a numeric column as float64 (N,), nulls as NaN: comparisons with NaN are false, so nulls never pass."""
    return rows[name].cast("float64").to_numpy()


def round_limit(rows: pa.Table, name: str, value: float) -> float:
    """Rounds ``value`` to the column's precision, so that a float32 equal to the limit as written compares equal."""
    return float(np.float32(value)) if str(rows.schema.field(name).type) == "float" else value


def pick_available(available: Collection[str], *names: str) -> str:
    """Returns the first of ``names`` that is available, or the last of them."""
    return next((name for name in names if name in available), names[-1])


def is_within(value_N: np.ndarray, least: float, most: float | None) -> np.ndarray:
    """Returns whether each value lies between the limits, both inclusive."""
    return (value_N >= least) & (value_N <= (np.inf if most is None else most))


def describe_outside(least: int, most: int | None) -> str:
    """Describes a value that is not `is_within`."""
    return f"below {least}" if most is None else f"not {least} to {most}"


def check_range(config: Config, unit: str) -> None:
    """Raises ValueError if ``min_<unit>`` is above ``max_<unit>``."""
    least, most = getattr(config, f"min_{unit}"), getattr(config, f"max_{unit}")
    if most is not None and least > most:
        raise ValueError(f"min_{unit} {least} is above max_{unit} {most}; lower it")
