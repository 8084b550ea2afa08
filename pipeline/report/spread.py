"""How quantities of the pairs are spread, kept and dropped ones apart: counted shard by shard, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.schema import read_table
from pipeline.store import Artifact

BINS = 40
DIGITS = 3  # significant ones that are told apart, so that the number of different values has a bound
BEYOND = 0.998  # of the rows; what lies above goes into the last bin


@dataclass
class Spread:
    """Rows by value, kept and dropped ones apart; values are told apart in steps of ``step``."""

    title: str
    unit: str
    step: float
    counts: dict[bool, Counter[float]] = field(default_factory=lambda: {True: Counter(), False: Counter()})

    def add(self, values_N: np.ndarray, keep_N: np.ndarray) -> None:
        """Counts rows; those whose value is not finite are left out."""
        for keep in (True, False):
            part_M = values_N[(keep_N == keep) & np.isfinite(values_N)]
            coarse_M = self.step * 10.0 ** np.ceil(np.log10(np.maximum(np.abs(part_M) / self.step, 1)) - DIGITS).clip(0)
            found, times = np.unique(np.round(np.round(part_M / coarse_M) * coarse_M, 9), return_counts=True)
            self.counts[keep].update(dict(zip(found.tolist(), times.tolist(), strict=True)))

    def bins(self) -> dict[str, Any] | None:
        """At most `BINS` bins of equal width: left edges, width, rows kept and dropped; None where there is no row."""
        total = self.counts[True] + self.counts[False]
        if not total:
            return None
        values = sorted(total)
        share_K = np.cumsum([total[value] for value in values]) / total.total()
        last = values[int(np.searchsorted(share_K, BEYOND))]
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


def spreads(artifacts: Mapping[str, Artifact]) -> dict[str, Spread]:
    """Of every downloaded pair: similarity, length of the caption, size and shape of the original, size of the file."""
    found = {
        "similarity": Spread("CLIP similarity of the pair", "cosine", 0.01),
        "caption_chars": Spread("Caption length", "characters", 1),
        "caption_words": Spread("Words of the caption", "words", 1),
        "side": Spread("Size of the original", "pixels of the shorter side", 1),
        "aspect": Spread("Shape of the original", "longer side / shorter side", 0.1),
        "bytes": Spread("Size of the stored file", "KB", 1),
    }
    columns = ["caption_chars", "caption_words", "width", "height", "bytes"]
    for measured, scores, keep_N in _aligned(artifacts, columns):
        values = {name: _floats(measured[name]) for name in columns}
        short_N, long_N = (choose(values["width"], values["height"]) for choose in (np.minimum, np.maximum))
        derived = {"side": short_N, "aspect": long_N / np.maximum(short_N, 1), "bytes": values["bytes"] / 1024}
        derived["similarity"] = _floats(scores["clip_similarity"])
        for name, spread in found.items():
            spread.add((values | derived)[name], keep_N)
    return found


def _aligned(artifacts: Mapping[str, Artifact], columns: list[str]) -> Iterator[tuple[pa.Table, pa.Table, np.ndarray]]:
    """Annotations, scores and verdicts of every shard that all three have."""
    files = [
        {shard.id: shard.files["parquet"] for shard in artifacts[s].shards} for s in ("annotate", "score", "select")
    ]
    for shard in sorted(set.intersection(*map(set, files))):
        measured = read_table(files[0][shard], "annotations", columns)
        scores = read_table(files[1][shard], "scores", ["clip_similarity"])
        yield measured, scores, read_table(files[2][shard], "selection", ["keep"])["keep"].to_numpy()


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(), np.float64)


def token_lengths(embed: Artifact) -> Spread:
    """Tokens of the stored captions."""
    found = Spread("Tokens of a caption", "tokens", 1)
    for path in embed.files():
        lengths_N = _floats(read_table(path, "embeddings", ["length"])["length"])
        found.add(lengths_N, np.ones(len(lengths_N), bool))
    return found
