"""Filters on what a list's makers, or a head over CLIP features, say of a picture: unsafe, watermarked, beautiful."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataprep.filters.base import column, limit


class Below:
    """Keeps rows whose ``measured`` probability is below ``most``, as LAION cuts; a row without one goes."""

    def __init__(self, name: str, measured: str, most: float) -> None:
        self.name, self.columns, self.most = name, (measured,), most

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        return column(rows, measured) < limit(rows, measured, self.most), f"{measured} not below {self.most:g}"


class Aesthetic:
    """Keeps rows with an aesthetic score of at least ``least``, or above it where ``strict``; one without goes."""

    name = "aesthetic"

    def __init__(self, measured: str, least: float, strict: bool) -> None:
        self.columns, self.least, self.strict = (measured,), least, strict

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        value_N, least = column(rows, measured), limit(rows, measured, self.least)
        if self.strict:
            return value_N > least, f"{measured} not above {self.least:g}"
        return value_N >= least, f"{measured} below {self.least:g}"


class Labels:
    """Drops rows that the list labels with one of ``labels`` (LAION: UNLIKELY, UNSURE, NSFW), in any case."""

    name = "nsfw_label"
    columns = ("listed_nsfw",)

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = frozenset(label.strip().upper() for label in labels)

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        keep = [(label or "").strip().upper() not in self.labels for label in rows["listed_nsfw"].to_pylist()]
        return np.array(keep, dtype=bool), f"labelled {', '.join(sorted(self.labels))}"
