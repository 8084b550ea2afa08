"""Task `prior`: predicts the CLIP embedding of an image from its caption (Ramesh et al. 2022, section 2.2).

Shape legend: B batch, E width of CLIP's embeddings.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dataprep.io.pack_format import IMAGE_FEATURES, TEXT_FEATURES
from train.loader.loader import Batch
from train.loader.mix_config import DataMix
from train.loader.sampler import SampleRandom
from train.loader.shard_index import ShardIndex
from train.models.base import Conditions
from train.models.prior.embedding import embedding_to_image, image_to_embedding
from train.tasks.denoising import DenoisingTask, drop_vectors, read_text_width
from train.tasks.pack_training import train_on_pack
from train.tasks.prior_config import PriorStageConfig, PriorTrainingConfig


class PriorTask(DenoisingTask):
    """The prior for the training loop; widths are those of the text embeddings and of CLIP's embeddings."""

    component = "prior"
    bound = (-math.inf, math.inf)

    def __init__(self, config: PriorStageConfig, text_dim: int, image_dim: int) -> None:
        super().__init__(config.diffusion, config.denoiser_config(text_dim, image_dim))
        self.config = config

    def clean(self, batch: Batch, random: SampleRandom) -> Tensor:
        """Returns the image embeddings, as images of one pixel."""
        return embedding_to_image(batch[IMAGE_FEATURES])

    def condition(self, batch: Batch, random: SampleRandom, x0_BCHW: Tensor) -> Conditions:
        """Returns the caption as tokens and as CLIP's embedding, each dropped at random by itself."""
        return Conditions(
            text_BLD=batch["text_BLD"],
            text_mask_BL=batch["text_mask_BL"],
            text_keep_B=random.uniform("keep") >= self.config.text_drop,
            pooled_text_BE=drop_vectors(batch[TEXT_FEATURES], self.config.text_drop, random, "pooled_keep"),
        )

    def measure_errors(self, x0_hat_BCHW: Tensor, x0_BCHW: Tensor) -> dict[str, Tensor]:
        """As `DenoisingTask.measure_errors`, and the mean cosine of what is predicted and what is true."""
        cosine_B = (image_to_embedding(x0_hat_BCHW.detach()) * image_to_embedding(x0_BCHW)).sum(1)
        return super().measure_errors(x0_hat_BCHW, x0_BCHW) | {"cosine": cosine_B.mean()}


def build_prior_task(config: PriorTrainingConfig, shards: ShardIndex) -> PriorTask:
    """Returns the task of a prior that trains on ``shards``."""
    return PriorTask(config, read_text_width(shards), shards.vectors[IMAGE_FEATURES])


def train_prior(
    index: str,
    validate: bool,
    config: PriorTrainingConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains the prior on this rank from the embeddings in pack shards, and the embedding shards of the captions.

    ``index`` is the path of their `train.loader.shard_index.ShardIndex`, for the config's columns; the rest is as in
    `train_on_pack`.
    """
    shards = ShardIndex.read(index)
    task = build_prior_task(config, shards)
    return train_on_pack(task, shards, validate, config, folder, seed, mix)
