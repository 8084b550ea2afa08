"""Tables of image features: one row per image, and their collection into sets."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io import storage
from dataprep.io.parquet import check_kind
from eval.metrics.config import OWN_CLIP
from eval.metrics.feature_sets import FeatureKey, FeatureSet, Subsample

if TYPE_CHECKING:
    from eval.clip.scorer import ClipScorer
    from eval.metrics.feature_extractors import FeatureExtractor

BATCH_ROWS = 4096
IMAGE_PREFIX = "image_"


@dataclass(frozen=True)
class CollectedFeatures:
    """Features by set, and pairs (image features, text features, digest of the caption) of the run's CLIP by set."""

    sets: Mapping[FeatureKey, FeatureSet]
    pairs: Mapping[str, Subsample]


def make_features_table(
    models: Mapping[str, FeatureExtractor],
    set_name: str,
    ids: Sequence[str],
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None,
) -> pa.Table:
    """Extracts the features of ``images`` (uint8 (H, W, 3), one size) by every model.

    Columns: id, set, size, caption (a digest, enough to see which captions are equal), ``text`` (the CLIP's features of
    the caption; not without ``captions``) and ``image_<model>``. ``models`` holds the run's CLIP as `OWN_CLIP`.
    """
    columns: dict[str, Any] = {
        "id": list(ids),
        "set": [set_name] * len(ids),
        "size": pa.array([images[0].shape[0]] * len(ids), pa.int32()),
        "caption": [_digest_caption(caption) for caption in captions] if captions is not None else [""] * len(ids),
    }
    own = cast("ClipScorer", models[OWN_CLIP])
    if captions is not None:
        columns["text"] = _to_column(own.text_features(captions))
    for name, model in models.items():
        columns[f"{IMAGE_PREFIX}{name}"] = _to_column(model.image_features(images))
    return pa.table(columns)


def collect_features(paths: Sequence[str], subsample: int, size: int) -> CollectedFeatures:
    """Reads tables of features in one pass, with memory that does not grow with their number.

    Pairs are of images of ``size`` pixels alone; ``subsample`` is the maximum number of rows kept per set.
    """
    sets: dict[FeatureKey, FeatureSet] = {}
    pairs: dict[str, Subsample] = defaultdict(lambda: Subsample(subsample))
    for path in paths:
        with storage.local_copy(path) as local, pq.ParquetFile(local) as file:
            check_kind(file.schema_arrow, path, "features")
            for batch in file.iter_batches(BATCH_ROWS):
                names, sizes = np.asarray(batch["set"].to_pylist()), np.asarray(batch["size"])
                for name, side in sorted({*zip(names.tolist(), sizes.tolist(), strict=True)}):
                    rows = batch.take(np.flatnonzero((names == name) & (sizes == side)))
                    _add_features(sets, rows, name, side, subsample)
                    if side == size and "text" in rows.schema.names:
                        _add_pairs(pairs[name], rows)
    return CollectedFeatures(sets, dict(pairs))


def _add_features(
    sets: dict[FeatureKey, FeatureSet], rows: pa.RecordBatch, name: str, size: int, subsample: int
) -> None:
    for column in rows.schema.names:
        if column.startswith(IMAGE_PREFIX):
            features_ND = _to_array(rows[column])
            key = (name, size, column.removeprefix(IMAGE_PREFIX))
            sets.setdefault(key, FeatureSet(features_ND.shape[1], subsample)).add(rows["id"].to_pylist(), features_ND)


def _add_pairs(pairs: Subsample, rows: pa.RecordBatch) -> None:
    images_ND, texts_ND = _to_array(rows[f"{IMAGE_PREFIX}{OWN_CLIP}"]), _to_array(rows["text"])
    values = zip(images_ND, texts_ND, rows["caption"].to_pylist(), strict=True)
    # Copied: a view of one row would keep the whole array in memory.
    pairs.add(rows["id"].to_pylist(), ((image_D.copy(), text_D.copy(), caption) for image_D, text_D, caption in values))


def _digest_caption(caption: str) -> str:
    return hashlib.sha256(json.dumps(caption, ensure_ascii=False).encode()).hexdigest()[:16]


def _to_column(features_ND: np.ndarray) -> pa.FixedSizeListArray:
    flat = np.ascontiguousarray(features_ND, np.float32).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), features_ND.shape[1])


def _to_array(column: pa.Array) -> np.ndarray:
    """Converts a column of vectors to float32 (N, D)."""
    flat: np.ndarray = column.flatten().to_numpy()
    return flat.reshape(len(column), -1)
