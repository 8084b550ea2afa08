"""Training of a task on the rows of pack shards."""

from __future__ import annotations

from typing import Any

from train.loader.loader import TRAIN, VALIDATION, Loader
from train.loader.mix_config import DataMix
from train.loader.reader import Reader
from train.loader.shard_index import ShardIndex
from train.loop import train
from train.task import Task


def train_on_pack(
    task: Task,
    shards: ShardIndex,
    validate: bool,
    config: Any,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains a task on this rank; ``config`` is a `TrainConfig` with keys ``data``, ``crop`` and ``min_original``.

    ``validate``: whether the pack has held-out rows; ``mix``: how sources and captions are mixed. Returns the figures
    of `train.loop.train`, and ``passed_over``: the number of row groups and images that could not be read.
    """
    data = Reader(shards, config.data, mix)

    def make_loader(split: str) -> Loader:
        min_original = config.min_original if split == TRAIN else 0  # few are held out: validate on all of them
        return Loader.from_reader(data, split, seed, config.batch_size, config.crop, min_original)

    loader = make_loader(TRAIN)
    result = train(task, config, loader, folder, seed, make_loader(VALIDATION) if validate else None)
    return result | {"passed_over": len(loader.corrupt)}
