"""Captions of the kept images of a shard: threads decode, one prepares ahead, the device writes batch after batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from dataprep.io.ahead import group_batches, map_ahead, read_ahead
from dataprep.io.parquet import read_table, write_table
from eval.captioning.config import CaptionConfig
from eval.captioning.vision_language_model import VisionLanguageModel

Stored = TypeVar("Stored")
BATCHES_AHEAD = 2


def caption_shard(
    images: Iterable[tuple[str, Stored]],
    selection_path: str | Path,
    out_path: str | Path,
    model: VisionLanguageModel,
    config: CaptionConfig,
    names: Sequence[str],
    decode: Callable[[Stored], np.ndarray] = np.asarray,
    threads: int = 1,
) -> dict[str, int]:
    """Writes the captions ``names`` of the kept images of a shard, row-aligned with its selection.

    Columns: key, and one of text per prompt of ``config``: null in rows that are not kept, where the model wrote
    nothing, and for prompts that are not in ``names``. ``images`` are pairs of a key and what ``decode`` turns into
    uint8 (H, W, 3), in any order; ``threads`` threads decode them.

    Returns:
        Counters: rows, captioned (images), left_out, captions, empty, cut (at the limit of tokens).

    Raises:
        ValueError: an image that is kept is not among ``images``.
    """
    selection = read_table(selection_path, "selection", ["key", "keep"])
    keys = selection["key"].to_pylist()
    kept = {key for key, keep in zip(keys, selection["keep"].to_pylist(), strict=True) if keep} if names else set()
    written: dict[str, dict[str, str]] = {key: {} for key in kept}
    counts: Counter[str] = Counter(captions=0, empty=0, cut=0)
    seen = 0
    wanted = ((key, data) for key, data in images if key in kept)
    opened = map_ahead(lambda pair: (pair[0], _open(decode(pair[1]), config.image_size)), read_ahead(wanted), threads)
    for batch_keys, prepared in read_ahead(_prepare(opened, model, config, names), BATCHES_AHEAD):
        seen += len(batch_keys)
        for name, inputs in prepared.items():
            answers = model.answer(inputs, config.prompts[name].max_tokens)
            for key, answer in zip(batch_keys, answers, strict=True):
                counts["cut"] += answer.cut
                counts["captions" if answer.text else "empty"] += 1
                if answer.text:
                    written[key][name] = answer.text
    if seen != len(kept):
        raise ValueError(f"{selection_path}: {seen} of {len(kept)} kept images; download the shard again")
    schema = pa.schema([("key", pa.string()), *((name, pa.string()) for name in config.prompts)])
    rows = [{"key": key} | written.get(key, {}) for key in keys]
    write_table(pa.Table.from_pylist(rows, schema=schema), out_path, "columns")
    return {"rows": len(keys), "captioned": seen, "left_out": len(keys) - seen, **counts}


def _open(image_HWC: np.ndarray, longest: int) -> Image.Image:
    image = Image.fromarray(image_HWC)
    image.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    return image


def _prepare(
    images: Iterable[tuple[str, Image.Image]], model: VisionLanguageModel, config: CaptionConfig, names: Sequence[str]
) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    for batch in group_batches(images, config.batch_size):
        opened = [image for _, image in batch]
        yield [key for key, _ in batch], {name: model.prepare(opened, config.prompts[name]) for name in names}
