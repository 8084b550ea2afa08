"""The scores of a shard: threads decode, resize and tokenise ahead of the device, which encodes batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dataprep.io.ahead import group_batches, map_ahead, read_ahead
from dataprep.io.device_copy import HostCopy, pin
from dataprep.io.pack_format import IMAGE_FEATURES, TEXT_FEATURES
from dataprep.io.parquet import read_table, write_table
from eval.clip.config import ScoreConfig
from eval.clip.heads import Head
from eval.clip.labels import LabelHead, make_label_heads
from eval.clip.scorer import ClipScorer, batched, join_features

Image = TypeVar("Image")
ImageHead = Head | LabelHead
BATCHES_AHEAD = 2


class PreparedPairs(NamedTuple):
    """A batch of pairs, ready for the device."""

    keys: list[str]
    pixels: list[Tensor]  # stacked by forward pass
    tokens: list[Tensor]  # of the distinct captions
    place: list[int]  # of each pair's caption among these


class EncodedPairs(NamedTuple):
    """A batch of pairs whose features are being computed."""

    prepared: PreparedPairs
    images: list[HostCopy]
    texts: list[HostCopy]


def load_heads(config: ScoreConfig, scorer: ClipScorer) -> list[ImageHead]:
    """Loads the heads, and makes those of the labels; raises UserError for a file that cannot be used."""
    heads = [Head.load(name, head) for name, head in config.heads.items()]
    return [*heads, *make_label_heads(config.labels, scorer)]


def score_shard(
    images: Iterable[tuple[str, Image]],
    download_path: str | Path,
    out_path: str | Path,
    scorer: ClipScorer,
    heads: Sequence[ImageHead] = (),
    features: Sequence[str] = (),
    decode: Callable[[Image], np.ndarray] = np.asarray,
    threads: int = 1,
) -> dict[str, int]:
    """Writes the scores of a download shard, row-aligned with its table; null in rows without an image.

    Columns: key, clip_similarity, one per head, and ``features``: of `FEATURES`, unit vectors as float16. ``images``
    are pairs of a key and what ``decode`` turns into uint8 (H, W, 3), in any order; ``threads`` threads decode and
    resize them. Returns the counters rows, scored and without_image. Raises ValueError for a key that is not in the
    table.
    """
    table = read_table(download_path, "download", ["key", "caption"])
    keys = table["key"].to_pylist()
    captions = {key: caption or "" for key, caption in zip(keys, table["caption"].to_pylist(), strict=True)}

    def prepare(pair: tuple[str, Image]) -> tuple[str, Tensor]:
        if pair[0] not in captions:
            raise ValueError(f"{download_path}: no row for image {pair[0]}; download the shard again")
        return pair[0], scorer.preprocess(decode(pair[1]))

    pairs = map_ahead(prepare, read_ahead(images), threads, 2 * scorer.batch_size)
    scores: dict[str, dict[str, Any]] = {}
    for batch in _encode_ahead(read_ahead(_prepare_batches(pairs, captions, scorer), BATCHES_AHEAD), scorer):
        scores |= _score_batch(batch, heads, features)
    rows = [{"key": key} | scores.get(key, {}) for key in keys]
    fields = {"key": pa.string(), "clip_similarity": pa.float32()} | {head.name: head.type for head in heads}
    fields |= {name: pa.binary(2 * scorer.dim) for name in features}
    write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), out_path, "scores")
    return {"rows": len(keys), "scored": len(scores), "without_image": len(keys) - len(scores)}


def _prepare_batches(
    pairs: Iterable[tuple[str, Tensor]], captions: Mapping[str, str], scorer: ClipScorer
) -> Iterator[PreparedPairs]:
    for batch in group_batches(pairs, scorer.batch_size):
        keys = [key for key, _ in batch]
        parts = batched([pixels for _, pixels in batch], scorer.image_batch)
        pixels = [pin(torch.stack(list(part)), scorer.device) for part in parts]
        yield PreparedPairs(keys, pixels, *scorer.tokenize_distinct([captions[key] for key in keys]))


def _encode_ahead(batches: Iterable[PreparedPairs], scorer: ClipScorer) -> Iterator[EncodedPairs]:
    """Yields encoded batches, each after the next one was given to the device."""
    before: EncodedPairs | None = None
    for batch in batches:
        images = [scorer.encode_images(pixels) for pixels in batch.pixels]
        encoded = EncodedPairs(batch, images, [scorer.encode_tokens(ids_BL) for ids_BL in batch.tokens])
        if before is not None:
            yield before
        before = encoded
    if before is not None:
        yield before


def _score_batch(batch: EncodedPairs, heads: Sequence[ImageHead], features: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the columns of each pair, by key."""
    image_BD = join_features([part.wait() for part in batch.images])
    text_BD = join_features([part.wait() for part in batch.texts])[batch.prepared.place]
    columns: dict[str, list[Any]] = {"clip_similarity": np.einsum("bd,bd->b", image_BD, text_BD).tolist()}
    columns |= {head.name: head(image_BD).tolist() for head in heads}
    vectors = {IMAGE_FEATURES: image_BD, TEXT_FEATURES: text_BD}
    columns |= {name: [vector.astype("<f2").tobytes() for vector in vectors[name]] for name in features}
    return {key: {name: values[row] for name, values in columns.items()} for row, key in enumerate(batch.prepared.keys)}
