"""How close samples come to training images: nearest neighbours in features, verified by pixels.

A sample of a model that has learned to draw, not to copy, is about as far from the training set as a real image that
the model never saw. So the same search is made for held-out images, and a warning needs more near copies than there.

Shape legend: Q queries, B training images of a batch, K neighbours kept per query, D features, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dataprep.io.parquet import read_table
from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.intervals import wilson_interval

if TYPE_CHECKING:
    from eval.metrics.feature_extractors import FeatureExtractor
    from eval.metrics.image_sets import NamedImage

BATCH = 64  # training images at a time
TILES = 4  # per side
EXACT = 0.01  # tile distance of a copy as good as bit by bit: what an encoder's rounding leaves
SIGNIFICANT = 0.01  # probability, by chance, of as many near copies more than among held-out images
SHOWN_PAIRS = 12
SCHEMA = pa.schema({"id": pa.string(), "query": pa.string(), "cosine": pa.float32(), "distance": pa.float32()})


@dataclass(frozen=True)
class Queries:
    """Images whose nearest training images are looked for.

    Attributes:
        ids: distinct names; of samples those of `eval.metrics.image_sets.sample_id`.
        features_QD: float32 unit vectors.
        pixels: uint8 (H, W, 3) each, at the training resolution.
        own: name of the training image that a query is, and that it must not find; None for others.
    """

    ids: Sequence[str]
    features_QD: np.ndarray
    pixels: Sequence[np.ndarray]
    own: Sequence[str | None] = ()


@dataclass(frozen=True)
class Pair:
    """A query and the training image that is nearest to it by pixels among its nearest by features."""

    query: str
    training: str
    cosine: float
    distance: float  # `tile_distance`


@dataclass(frozen=True)
class CopySearch:
    """The nearest pairs of the samples and of held-out images, and what they were found in."""

    samples: Sequence[Pair]
    held_out: Sequence[Pair]
    held_out_name: str
    training_images: int
    threshold: float
    features: str
    size: int  # pixels of the compared images


def tile_distance(one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """Returns the greatest root mean square difference of a tile, as a share of the range of pixels: 0 to 1.

    The images, uint8 of one size, are cut into 4 x 4 tiles: the mean over a whole image would take two small objects on
    the same background for copies (Carlini et al. 2023, section 4.2, with their distance's range).
    """
    apart_HWC = one_HWC.astype(np.float32) - other_HWC.astype(np.float32)
    squares_HW = np.einsum("hwc,hwc->hw", apart_HWC, apart_HWC)
    rows, columns = (_tile_starts(length) for length in squares_HW.shape)
    sums_TT = np.add.reduceat(np.add.reduceat(squares_HW, rows, axis=0), columns, axis=1)
    counts_TT = np.outer(np.diff([*rows, squares_HW.shape[0]]), np.diff([*columns, squares_HW.shape[1]]))
    return float(np.sqrt((sums_TT / counts_TT).max() / one_HWC.shape[2]) / 255)


def _tile_starts(length: int) -> list[int]:
    tiles = min(TILES, length)
    return [number * length // tiles for number in range(tiles)]


def make_queries_table(queries: Queries) -> pa.Table:
    """Returns queries as a table: id, own, features and pixels, which have one size."""
    features_QD = np.ascontiguousarray(queries.features_QD, np.float32)
    shape = queries.pixels[0].shape if len(queries.pixels) else (0, 0, 3)
    return pa.table(
        {
            "id": list(queries.ids),
            "own": pa.array(queries.own or [None] * len(queries.ids), pa.string()),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(features_QD.ravel()), features_QD.shape[1]),
            "pixels": pa.array([image.tobytes() for image in queries.pixels], pa.binary()),
        }
    ).replace_schema_metadata({"height": str(shape[0]), "width": str(shape[1])})


def read_queries(path: str) -> Queries:
    """Returns the queries of a table that `make_queries_table` made and `write_table` wrote as kind "features"."""
    table = read_table(path, "features")
    shape = (int(table.schema.metadata[b"height"]), int(table.schema.metadata[b"width"]), 3)
    features_QD = table["features"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    pixels = [np.frombuffer(data, np.uint8).reshape(shape) for data in table["pixels"].to_pylist()]
    return Queries(table["id"].to_pylist(), features_QD, pixels, table["own"].to_pylist())


class NearestImages:
    """Keeps the nearest training images of every query; memory does not grow with the training set."""

    def __init__(self, queries: Queries, neighbours: int) -> None:
        self.queries, self.neighbours = queries, neighbours
        self.found: list[list[Pair]] = [[] for _ in queries.ids]

    def add(self, names: Sequence[str], features_BD: np.ndarray, images: Sequence[np.ndarray]) -> None:
        """Compares a batch of training images, uint8 of the queries' size, with every query."""
        if not len(self.queries.ids) or not names:
            return
        cosine_QB = self.queries.features_QD @ features_BD.T
        for number, query in enumerate(self.queries.ids):
            kept = self.found[number]
            bound = kept[-1].cosine if len(kept) == self.neighbours else -np.inf
            near = np.flatnonzero(cosine_QB[number] > bound)
            own = self.queries.own[number] if self.queries.own else None
            for index in near[np.argsort(-cosine_QB[number, near], kind="stable")][: self.neighbours].tolist():
                if names[index] != own:
                    apart = tile_distance(self.queries.pixels[number], images[index])
                    kept.append(Pair(query, names[index], float(cosine_QB[number, index]), apart))
            self._cut(number)

    def merge(self, pairs: Iterable[Pair]) -> None:
        """Adds pairs that were found elsewhere, such as in another shard."""
        number = {query: place for place, query in enumerate(self.queries.ids)}
        for pair in pairs:
            self.found[number[pair.query]].append(pair)
        for place in range(len(self.found)):
            self._cut(place)

    def nearest(self) -> list[Pair]:
        """Returns for each query that found any the neighbour with the smallest pixel distance."""
        return [min(pairs, key=lambda pair: (pair.distance, pair.training)) for pairs in self.found if pairs]

    def to_table(self) -> pa.Table:
        """Returns all kept pairs; ``id`` is the training image."""
        rows = [
            {"id": pair.training, "query": pair.query, "cosine": pair.cosine, "distance": pair.distance}
            for pairs in self.found
            for pair in pairs
        ]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _cut(self, number: int) -> None:
        self.found[number] = sorted(self.found[number], key=lambda pair: (-pair.cosine, pair.training))[
            : self.neighbours
        ]


def search_images(found: Sequence[NearestImages], images: Iterator[NamedImage], scorer: FeatureExtractor) -> int:
    """Compares training images (name, uint8 of the queries' size, caption) with the queries; returns how many."""
    count = 0
    while part := list(islice(images, BATCH)):
        names, pixels = [name for name, _, _ in part], [image for _, image, _ in part]
        features_BD = scorer.image_features(pixels)
        for nearest in found:
            nearest.add(names, features_BD, pixels)
        count += len(part)
    return count


def read_pairs(table: pa.Table) -> list[Pair]:
    """Returns the pairs of `NearestImages.to_table`."""
    return [Pair(row["query"], row["id"], row["cosine"], row["distance"]) for row in table.to_pylist()]


class Memorisation(Metric):
    """Share of samples that are near copies of training images, against the share among held-out images."""

    title = "Memorisation"
    description = "How close samples come to training images."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Key memorisation; absent where no training images were searched."""
        return {} if judged.copies is None else {"memorisation": describe_copies(judged.copies)}


def describe_copies(search: CopySearch) -> dict[str, Any]:
    """Returns counts, quantiles of the nearest distance, the closest pairs, and ``warning``: a sentence or None."""
    samples, held_out = (_count_copies(pairs, search.threshold) for pairs in (search.samples, search.held_out))
    closest = sorted(search.samples, key=lambda pair: (pair.distance, pair.query))[:SHOWN_PAIRS]
    return {
        "training_images": search.training_images,
        "features": search.features,
        "size": search.size,
        "threshold": search.threshold,
        "samples": samples,
        "held_out": held_out | {"what": search.held_out_name} if held_out else None,
        "warning": _warn(samples, held_out, search),
        "closest": [_describe_pair(pair) for pair in closest],
    }


def _describe_pair(pair: Pair) -> dict[str, Any]:
    prompt, _, seed = pair.query.rpartition("|")
    found = {"prompt": prompt, "seed": int(seed), "training": pair.training}
    return found | {"cosine": pair.cosine, "distance": pair.distance}


def _count_copies(pairs: Sequence[Pair], threshold: float) -> dict[str, Any]:
    """Returns images, near copies with their share and its interval, exact copies, and quantiles; empty for no pair."""
    if not pairs:
        return {}
    distances = np.asarray([pair.distance for pair in pairs])
    copies = int((distances <= threshold).sum())
    low, half = np.quantile(distances, [0.05, 0.5]).tolist()
    found = {"images": len(pairs), "copies": copies, "exact": int((distances <= EXACT).sum())}
    return {**found, "share": copies / len(pairs), **wilson_interval(copies, len(pairs)), "q05": low, "median": half}


def _warn(samples: dict[str, Any], held_out: dict[str, Any], search: CopySearch) -> str | None:
    if not samples or not samples["copies"]:
        return None
    counts = f"{samples['copies']} of {samples['images']} samples are near copies of training images"
    if not held_out:
        return f"{counts} (distance up to {search.threshold:g}); there are no held-out images to compare with"
    among = f"{held_out['copies']} of {held_out['images']} {search.held_out_name} are"
    excess = probability_of_excess(samples["copies"], samples["images"], held_out["copies"], held_out["images"])
    if excess < SIGNIFICANT or (samples["exact"] and not held_out["exact"]):
        return f"{counts} (distance up to {search.threshold:g}); {among}"
    return None


def probability_of_excess(hits: int, count: int, other_hits: int, other_count: int) -> float:
    """Returns the probability of ``hits`` or more among ``count`` if both sets had one rate (Fisher's exact test)."""
    total, whole = hits + other_hits, count + other_count
    ways = sum(comb(count, k) * comb(other_count, total - k) for k in range(hits, min(count, total) + 1))
    return ways / comb(whole, total)
