"""Task `vq`: an autoencoder with a codebook, at one resolution (van den Oord et al. 2017).

Shape legend: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train.adversary import Adversary, make_adversary
from train.codebook import CodebookAverage
from train.diffusion.objective import to_model_range, to_pixels
from train.loader.loader import Batch
from train.loader.mix_config import DataMix
from train.loader.sampler import SampleRandom
from train.loader.shard_index import ShardIndex
from train.models.discriminator import pool_text
from train.models.vq.autoencoder import VqAutoencoder, VqOutput
from train.models.vq.stage_folder import save_autoencoder
from train.task import Companion
from train.tasks.pack_training import train_on_pack
from train.tasks.vq_config import VqStageConfig, VqTrainingConfig


class VqTask:
    """An autoencoder for the training loop; ``batch_size`` is that of an update."""

    def __init__(self, config: VqStageConfig, batch_size: int, adversary: Adversary | None = None) -> None:
        self.config, self.column, self.adversary = config, config.pixel_columns()[0], adversary
        self.codebook = CodebookAverage(config.codebook_decay, config.revive_below, batch_size)
        self.companions: dict[str, Companion] = {"codebook": self.codebook}
        if adversary is not None:
            self.companions["adversary"] = adversary

    def build(self) -> nn.Module:
        """Returns a fresh autoencoder."""
        return VqAutoencoder(self.config.autoencoder_config())

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean error of the image plus the commitment (scalar), and both apart, with the squared error.

        And the adversarial term, if any, with what `Adversary.play` logs.
        """
        image_BCHW = to_model_range(batch[self.column])
        output: VqOutput = model(image_BCHW)
        self.codebook.observe(output.latent_BDhw, output.codes_Bhw, random)
        loss, metrics = self._sum_losses(image_BCHW, output)
        if self.adversary is None:
            return loss, metrics
        text_BE = pool_text(batch["text_BLD"], batch["text_mask_BL"]) if self.adversary.sees_text else None
        term, judged = self.adversary.play(output.image_BCHW, image_BCHW, text_BE, random)
        return loss + term, metrics | judged

    def validate(
        self, model: Callable[..., Any], batch: Batch, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`, and ``psnr``, the mean peak signal-to-noise ratio of an image in dB."""
        image_BCHW = to_model_range(batch[self.column])
        output: VqOutput = model(image_BCHW)
        loss, metrics = self._sum_losses(image_BCHW, output)
        return loss, metrics | {"psnr": peak_signal_to_noise(output.image_BCHW, image_BCHW).mean()}

    def _sum_losses(self, image_BCHW: Tensor, output: VqOutput) -> tuple[Tensor, dict[str, Tensor]]:
        error_BCHW = output.image_BCHW.float() - image_BCHW
        squared = error_BCHW.square().mean()
        reconstruction = error_BCHW.abs().mean() if self.config.reconstruction == "l1" else squared
        commitment = (output.latent_BDhw - output.quantised_BDhw.detach()).square().mean()
        loss = reconstruction + self.config.commitment * commitment
        return loss, {"reconstruction": reconstruction, "commitment": commitment, "mse": squared}

    @torch.no_grad()
    def sample_grid(self, weights: dict[str, Tensor], batch: Batch, seed: int) -> np.ndarray:
        """Returns reconstructions above the true images, uint8 RGB (2H, n W, 3)."""
        true_BHWC = batch[self.column]
        model = self.build().to(true_BHWC.device)
        model.load_state_dict(weights)
        output: VqOutput = model.eval()(to_model_range(true_BHWC))
        rows = [torch.cat(list(images), dim=1) for images in (to_pixels(output.image_BCHW), true_BHWC)]
        return torch.cat(rows).cpu().numpy()

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the autoencoder as `train.models.vq.stage_folder.load_autoencoder` reads it."""
        save_autoencoder(folder, weights, self.config.autoencoder_config(), step)


def peak_signal_to_noise(one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio of images in [-1, 1] in dB (B,), for a peak of the whole range."""
    squared_B = (one_BCHW.float().clamp(-1, 1) - other_BCHW).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / squared_B.clamp(min=1e-10))


def build_vq_task(config: VqTrainingConfig, shards: ShardIndex, seed: int) -> VqTask:
    """Returns the task of an autoencoder that trains on ``shards``; ``seed`` makes its discriminator's weights."""
    channels = config.autoencoder_config().image_channels
    adversary = make_adversary(config.adversarial, channels, shards.text_dim, config.accumulation, seed)
    return VqTask(config, config.batch_size, adversary)


def train_vq(
    index: str,
    validate: bool,
    config: VqTrainingConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains an autoencoder on this rank from pack shards.

    ``index`` is the path of their `train.loader.shard_index.ShardIndex`, for the config's pixel column and
    ``min_original``, with embeddings for a discriminator that sees captions; ``validate``, ``mix`` and the result are
    those of `train_on_pack`.
    """
    shards = ShardIndex.read(index)
    task = build_vq_task(config, shards, seed)
    return train_on_pack(task, shards, validate, config, folder, seed, mix)
