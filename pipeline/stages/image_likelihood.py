"""Worker that measures the likelihood of the run's validation images under one cascade stage.

The driver imports this module to name the worker; what needs torch is imported in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from dataprep.io import storage
from dataprep.io.keys import shard_name
from eval.metrics.config import LikelihoodConfig
from eval.metrics.likelihood import measure_likelihood
from eval.sampling.config import CascadeConfig, StageEntry
from pipeline.runtime.device import worker_device
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.image_features import read_packed_images
from pipeline.stages.trained_cascade import build_cascade

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "likelihood"  # of the artifact

ImagePair = tuple[np.ndarray, np.ndarray, str]  # uint8 (H, W, 3) at the stage's size and at its input's, caption


class LikelihoodWorker:
    """A shard is a cascade stage, by its number; ``pack`` are the files of the pack stage."""

    def __init__(self, cascade: CascadeConfig, pack: Sequence[str], config: LikelihoodConfig) -> None:
        self.cascade, self.pack, self.config = build_cascade(cascade, worker_device()), pack, config

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes a JSON file: the stage's name, and the bits per dimension of each image by part."""
        from eval.sampling.stage_sampler import pad_text

        stage = self.cascade.stages[task.id]
        found: list[dict[str, float]] = []
        pairs = islice(read_pairs(self.pack, stage.entry), self.config.images)
        while part := list(islice(pairs, self.config.batch_size)):
            large, small, captions = zip(*part, strict=True)
            text = pad_text(self.cascade.encoder.encode(captions), self.cascade.device)
            low = self._to_range(small) if stage.entry.low_resolution else None
            found += measure_likelihood(stage, text, self._to_range(large), low, self.config, len(found))
        storage.write_json(str(task.out / shard_name(task.id, "json")), {"stage": stage.entry.name, "images": found})
        return {"likelihood_images": len(found)}

    def _to_range(self, images: Sequence[np.ndarray]) -> Tensor:
        import torch

        from train.diffusion.objective import to_model_range

        return to_model_range(torch.from_numpy(np.stack(images)).to(self.cascade.device))


def read_pairs(pack: Sequence[str], entry: StageEntry) -> Iterator[ImagePair]:
    """Yields the validation images at the stage's resolution and at that of its input (the same for a base stage)."""
    for path in pack:
        with storage.local_copy(path) as local:
            large = read_packed_images(local, entry.resolution)
            small = read_packed_images(local, entry.low_resolution or entry.resolution)
            for (_, image, caption), (_, low, _) in zip(large, small, strict=True):
                yield image, low, caption
