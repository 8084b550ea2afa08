"""Histograms of the pairs, kept and dropped apart, counted shard by shard in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.io.parquet import read_table
from pipeline.store.artifact import Artifact

BINS = 40
DIGITS = 3  # significant digits that are kept, to bound the number of different values
QUANTILE = 0.998  # values above it go into the last bin


@dataclass
class Histogram:
    """Rows by value, kept (True) and dropped (False) apart, at a resolution of ``step``."""

    title: str
    unit: str
    step: float
    counts: dict[bool, Counter[float]] = field(default_factory=lambda: {True: Counter(), False: Counter()})

    def add(self, values_N: np.ndarray, keep_N: np.ndarray) -> None:
        """Counts the rows whose value is finite."""
        for keep in (True, False):
            part_M = values_N[(keep_N == keep) & np.isfinite(values_N)]
            coarse_M = self.step * 10.0 ** np.ceil(np.log10(np.maximum(np.abs(part_M) / self.step, 1)) - DIGITS).clip(0)
            found, times = np.unique(np.round(np.round(part_M / coarse_M) * coarse_M, 9), return_counts=True)
            self.counts[keep].update(dict(zip(found.tolist(), times.tolist(), strict=True)))

    def bins(self) -> dict[str, Any] | None:
        """Returns about `BINS` bins of equal width (left, width, last, unit, kept, dropped); None without rows."""
        total = self.counts[True] + self.counts[False]
        if not total:
            return None
        values = sorted(total)
        share_K = np.cumsum([total[value] for value in values]) / total.total()
        last = values[int(np.searchsorted(share_K, QUANTILE))]
        steps = max(1, int(np.ceil(round((last - values[0]) / self.step + 1, 6) / BINS)))
        width = steps * self.step
        count = round((last - values[0]) / self.step) // steps + 1
        rows = {}
        for keep, name in ((True, "kept"), (False, "dropped")):
            rows_B = np.zeros(count, np.int64)
            for value, times in self.counts[keep].items():
                rows_B[min(count - 1, round((value - values[0]) / self.step) // steps)] += times
            rows[name] = rows_B.tolist()
        left = [round(values[0] + number * width, 6) for number in range(count)]
        return {"left": left, "width": round(width, 6), "last": max(values), "unit": self.unit, **rows}


def count_values(artifacts: Mapping[str, Artifact]) -> dict[str, Histogram]:
    """Counts similarity, caption length, original size and aspect, and file size of every downloaded pair."""
    found = {
        "similarity": Histogram("CLIP similarity", "cosine", 0.01),
        "caption_chars": Histogram("Caption length in characters", "characters", 1),
        "caption_words": Histogram("Caption length in words", "words", 1),
        "side": Histogram("Original size", "pixels of the shorter side", 1),
        "aspect": Histogram("Original aspect ratio", "longer side / shorter side", 0.1),
        "bytes": Histogram("Stored file size", "KB", 1),
    }
    columns = ["caption_chars", "caption_words", "width", "height", "bytes"]
    for measured, scores, keep_N in _read_aligned(artifacts, columns):
        values = {name: _floats(measured[name]) for name in columns}
        short_N, long_N = (pick(values["width"], values["height"]) for pick in (np.minimum, np.maximum))
        derived = {"side": short_N, "aspect": long_N / np.maximum(short_N, 1), "bytes": values["bytes"] / 1024}
        derived["similarity"] = _floats(scores["clip_similarity"])
        for name, histogram in found.items():
            histogram.add((values | derived)[name], keep_N)
    return found


def _read_aligned(
    artifacts: Mapping[str, Artifact], columns: list[str]
) -> Iterator[tuple[pa.Table, pa.Table, np.ndarray]]:
    """Yields annotations, scores and ``keep`` of every shard that has all three."""
    files = [
        {shard.id: shard.files["parquet"] for shard in artifacts[s].shards} for s in ("annotate", "score", "select")
    ]
    for shard in sorted(set.intersection(*map(set, files))):
        measured = read_table(files[0][shard], "annotations", columns)
        scores = read_table(files[1][shard], "scores", ["clip_similarity"])
        yield measured, scores, read_table(files[2][shard], "selection", ["keep"])["keep"].to_numpy()


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(), np.float64)


def count_tokens(embed: Artifact) -> Histogram:
    """Counts the tokens of the stored captions."""
    found = Histogram("Tokens per caption", "tokens", 1)
    for path in embed.files():
        lengths_N = _floats(read_table(path, "embeddings", ["length"])["length"])
        found.add(lengths_N, np.ones(len(lengths_N), bool))
    return found
