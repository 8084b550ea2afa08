"""Queries of the search for near copies of training images: features that were extracted already, with their pixels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from dataprep.io import storage
from dataprep.io.parquet import read_table, write_table
from eval.metrics.config import OWN_CLIP
from eval.metrics.feature_sets import SAMPLE_SET, Subsample
from eval.metrics.feature_tables import IMAGE_PREFIX
from eval.metrics.image_sets import NamedImage, read_first_samples
from eval.metrics.memorisation import Queries, make_queries_table
from pipeline.stages.image_features import read_packed_images


def collect_queries(set_name: str, tables: Sequence[str], files: Sequence[str], size: int, limit: int) -> Queries:
    """Returns at most ``limit`` images of a set as queries, chosen by the hashes of their ids.

    Args:
        set_name: `SAMPLE_SET`, or the validation images.
        tables: of features.
        files: of the samples, or of the pack.
        size: pixels of the compared images.
    """
    column, chosen = f"{IMAGE_PREFIX}{OWN_CLIP}", Subsample(limit)
    for path in tables:
        table = read_table(path, "features", ["id", "set", "size", column])
        table = table.filter(pc.and_(pc.equal(table["set"], set_name), pc.equal(table["size"], size)))
        ids = table["id"].to_pylist()
        features_ND = table[column].combine_chunks().flatten().to_numpy().reshape(len(ids), -1) if ids else []
        chosen.add(ids, zip(ids, features_ND, strict=True))
    features = dict(chosen.taken())
    pixels = {}
    for name, image, _ in _read_images(set_name, files, size):
        if name in features:
            pixels[name] = image
        if len(pixels) == len(features):
            break
    names = sorted(pixels)
    stacked = np.stack([features[name] for name in names]) if names else np.zeros((0, 1), np.float32)
    return Queries(names, stacked, [pixels[name] for name in names])


def _read_images(set_name: str, files: Sequence[str], size: int) -> Iterator[NamedImage]:
    for path in files:
        with storage.local_copy(path) as local:
            yield from read_first_samples(local, size) if set_name == SAMPLE_SET else read_packed_images(local, size)


def write_queries(path: str, sets: Mapping[str, Queries]) -> tuple[str, str]:
    """Writes the queries of all sets to one file at ``path``; returns the path and the file's SHA-256.

    A query's name there is ``<set>:<id>``: a key of the pack may be the text of a prompt.
    """
    filled = {name: part for name, part in sets.items() if part.ids}
    whole = Queries(
        [f"{name}:{query}" for name, part in filled.items() for query in part.ids],
        np.concatenate([part.features_QD for part in filled.values()]) if filled else np.zeros((0, 1), np.float32),
        [image for part in filled.values() for image in part.pixels],
    )
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        local = Path(scratch) / "queries.parquet"
        write_table(make_queries_table(whole), local, "features")
        storage.publish(local, path)
    return path, storage.sha256_file(path)[0]
