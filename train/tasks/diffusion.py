"""Task `diffusion`: one cascade stage, a text-conditional denoiser at one resolution.

Sections are of arXiv 2205.11487. Shape legend: B batch, C channels, H W height and width, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.errors import UserError
from dataprep.io.pack_format import IMAGE_FEATURES
from dataprep.io.parquet import read_schema
from dataprep.text.embedding_codec import EMPTY_TEXT_KEY, unpack_embedding
from train.adversary import Adversary, make_adversary
from train.diffusion.guidance import GuidedDenoiser
from train.diffusion.likelihood import NATS_TO_BITS
from train.diffusion.objective import (
    augment_lowres,
    bound_ends,
    log_snr_at_time,
    to_model_range,
    to_pixels,
    upsample_lowres,
)
from train.diffusion.samplers import ddim, sampling_log_snrs
from train.diffusion.schedules import network_input
from train.loader.loader import Batch
from train.loader.mix_config import DataMix
from train.loader.sampler import SampleRandom
from train.loader.shard_index import ShardIndex
from train.models.base import Conditions, PaddedTextDenoiser
from train.models.discriminator import pool_text
from train.models.perceptual import PerceptualTerm
from train.task import Companion
from train.tasks.denoising import (
    DenoisingInputs,
    DenoisingTask,
    bind,
    drop_vectors,
    perturb_vectors,
    read_text_width,
)
from train.tasks.diffusion_config import DiffusionStageConfig, DiffusionTrainingConfig
from train.tasks.pack_training import train_on_pack

GRID_STEPS = 16  # network evaluations for a grid of samples


class DiffusionTask(DenoisingTask):
    """A stage for the training loop; ``text_dim`` is the width of the text embeddings.

    ``empty_text_LD``: the embedding of the empty text, which a `PaddedTextDenoiser` needs; ``adversary``: judges what a
    super-resolution stage predicts; ``image_dim``: the width of the image embeddings, of a stage that takes them.
    """

    def __init__(
        self,
        config: DiffusionStageConfig,
        text_dim: int,
        empty_text_LD: np.ndarray | None = None,
        adversary: Adversary | None = None,
        image_dim: int | None = None,
    ) -> None:
        super().__init__(config.diffusion, config.denoiser_config(text_dim, image_dim))
        self.config, self.empty_text_LD, self.adversary = config, empty_text_LD, adversary
        self.companions: dict[str, Companion] = {} if adversary is None else {"adversary": adversary}
        self.columns = config.pixel_columns()
        self.image_loss = PerceptualTerm(config.perceptual) if config.perceptual else None

    def build(self) -> nn.Module:
        """Returns a fresh network."""
        model = super().build()
        if self.empty_text_LD is not None:
            cast(PaddedTextDenoiser, model).set_empty_text(torch.from_numpy(self.empty_text_LD))
        return model

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """As `DenoisingTask.loss`; plus the adversarial term, if any, with what `Adversary.play` logs."""
        inputs = self._inputs(batch, random)
        noised, conditions = inputs.noised, inputs.conditions
        loss_B, x0_hat_BCHW = self.sample_losses(model, inputs)
        loss, metrics = loss_B.mean(), self.measure_errors(x0_hat_BCHW, noised.x0_BCHW)
        if self.adversary is None:
            return loss, metrics
        text_BE = None
        if self.adversary.sees_text and conditions.text_BLD is not None:
            text_BE = pool_text(conditions.text_BLD, conditions.text_mask_BL)
        # The more noise, the more of a good prediction is a mean of many images: alpha^2 is what it counts.
        share_B = noised.log_snr_B.float().sigmoid()
        term, judged = self.adversary.play(x0_hat_BCHW, noised.x0_BCHW, text_BE, random, share_B)
        return loss + term, metrics | judged

    def clean(self, batch: Batch, random: SampleRandom) -> Tensor:
        """Returns the images, in the first updates at half their size where the config says so."""
        x0_BCHW = to_model_range(batch[self.columns[0]])
        if 0 <= random.step < self.config.half_size_steps:  # validation's step is below 0
            x0_BCHW = functional.avg_pool2d(x0_BCHW, 2)
        return x0_BCHW

    def condition(self, batch: Batch, random: SampleRandom, x0_BCHW: Tensor) -> Conditions:
        """Returns caption, low-resolution image and noised image embedding; first and last are dropped at random."""
        keep_B = random.uniform("keep") >= self.config.text_drop
        conditions = self._conditions(batch, random, x0_BCHW.shape[-2:])._replace(text_keep_B=keep_B)
        if self.config.token_drop:
            mask_BL = hide_tokens(batch["text_mask_BL"], random, self.config.token_drop)
            conditions = conditions._replace(text_mask_BL=mask_BL)
        given_BE = conditions.image_embedding_BE
        if given_BE is None:
            return conditions
        if self.config.image_noise:
            given_BE = perturb_vectors(given_BE, self.config.image_noise, random, "image_noise")
        dropped_BE = drop_vectors(given_BE, self.config.image_drop, random, "image_keep")
        return conditions._replace(image_embedding_BE=dropped_BE)

    def measure_more(
        self, model: Callable[..., Any], inputs: DenoisingInputs, loss_B: Tensor, random: SampleRandom
    ) -> dict[str, Tensor]:
        """Returns the bound's bits per dimension by part and by quarter of time, with ``weighting: elbo``.

        ``loss_B`` is then the bound's integral (docs/diffusion.md, equation 10).
        """
        if self.diffusion.weighting != "elbo":
            return {}
        x0_BCHW = inputs.noised.x0_BCHW
        noise_BCHW = random.normal("latent", *x0_BCHW.shape[1:])
        prior_B, reconstruction_B = bound_ends(bind(model, inputs.conditions), x0_BCHW, noise_BCHW, self.diffusion)
        bits = {"per_dim": prior_B + reconstruction_B + loss_B, "prior": prior_B, "reconstruction": reconstruction_B}
        bits |= {f"noise_{quarter + 1}of4": loss_B * ((inputs.t_B * 4).long() == quarter) for quarter in range(4)}
        return {f"bits_{name}": nats_B.mean() * NATS_TO_BITS for name, nats_B in bits.items()}

    def _conditions(self, batch: Batch, random: SampleRandom, size: Sequence[int]) -> Conditions:
        """Text and image embedding of the batch; for super-resolution the small image at ``size`` (height, width).

        The latter has noise of a random level (noise conditioning augmentation, 2.4).
        """
        conditions = Conditions(text_BLD=batch["text_BLD"], text_mask_BL=batch["text_mask_BL"])
        if self.config.image_embedding:
            conditions = conditions._replace(image_embedding_BE=batch[IMAGE_FEATURES].float())
        if not self.config.low_resolution:
            return conditions
        low_BCHW = to_model_range(batch[self.columns[1]])
        level_B = random.uniform("lowres_level") * self.diffusion.lowres_max_level
        up_BCHW = upsample_lowres(low_BCHW, (size[0], size[1]), self.diffusion.lowres_align_corners)
        noise_BCHW = random.normal("lowres_noise", *up_BCHW.shape[1:])
        noised_BCHW, log_snr_B = augment_lowres(up_BCHW, level_B, noise_BCHW, self.diffusion)
        return conditions._replace(lowres_BCHW=noised_BCHW, lowres_log_snr_B=log_snr_B)

    @torch.no_grad()
    def sample_grid(self, weights: dict[str, Tensor], batch: Batch, seed: int) -> np.ndarray:
        """Returns samples for the captions of a batch above the true images, uint8 RGB (2H, n W, 3).

        A preview: no guidance, few steps; a super-resolution stage starts from the true small images of the batch.
        Computes where the batch lies, on a GPU in bf16.
        """
        device = batch[self.columns[0]].device
        with device:
            model = self.build()
        model.load_state_dict(weights)
        model.eval()
        config = self.diffusion
        true_BHWC = batch[self.columns[0]]
        random = SampleRandom.of_batch(seed, -1, batch)
        conditions, reads = self._conditions(batch, random, true_BHWC.shape[1:3]), self.config.reads_text()

        def predict(x_BCHW: Tensor, log_snr_B: Tensor, keep_B: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
                seen_BCHW = network_input(x_BCHW, log_snr_B, config.schedule)
                output_BCHW: Tensor = model(seen_BCHW, log_snr_B, conditions._replace(text_keep_B=keep_B & reads))
            return output_BCHW.float()

        denoise = GuidedDenoiser(predict, config.prediction, 1.0, "static")
        start_BCHW = random.normal("draw", 3, *true_BHWC.shape[1:3])
        samples_BCHW = ddim(denoise, start_BCHW, self.preview_levels(), torch.zeros)
        rows = [torch.cat(list(images), dim=1) for images in (to_pixels(samples_BCHW), true_BHWC)]
        return torch.cat(rows).cpu().numpy()

    def preview_levels(self) -> Tensor:
        """Returns the noise levels at which `sample_grid` samples, and the clean end."""
        return sampling_log_snrs(lambda t_B: log_snr_at_time(self.config.diffusion, t_B), GRID_STEPS)


def build_diffusion_task(config: DiffusionTrainingConfig, shards: ShardIndex, seed: int) -> DiffusionTask:
    """Returns the task of a stage that trains on ``shards``; ``seed``: of its discriminator's weights, if any."""
    channels, text_dim = config.denoiser_config().image_channels, read_text_width(shards)
    adversary = make_adversary(config.adversarial, channels, text_dim, config.accumulation, seed)
    return DiffusionTask(
        config, text_dim, find_empty_text(config, shards), adversary, shards.vectors.get(IMAGE_FEATURES)
    )


def train_diffusion(
    index: str,
    validate: bool,
    config: DiffusionTrainingConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains a stage on this rank from pack shards and their embedding shards.

    ``index`` is the path of a `train.loader.shard_index.ShardIndex`, for the config's columns and
    ``min_original``; ``validate``, ``mix`` and the result are those of `train_on_pack`.
    """
    shards = ShardIndex.read(index)
    task = build_diffusion_task(config, shards, seed)
    return train_on_pack(task, shards, validate, config, folder, seed, mix)


def find_empty_text(config: DiffusionStageConfig, shards: ShardIndex) -> np.ndarray | None:
    """Returns the embedding of the empty text, float32 (L, D), for a network that reads padding; None for others."""
    padded = config.denoiser_config().caption_tokens() is not None
    return read_empty_text(str(shards.embed_path(0))) if padded else None


def read_empty_text(path: str) -> np.ndarray:
    """Reads the embedding of the empty text, float32 (L, D), from an embedding shard; UserError where it has none."""
    packed = (read_schema(path, "embeddings").metadata or {}).get(EMPTY_TEXT_KEY)
    if packed is None:
        raise UserError(f"{path}: embedded without padding, which the network reads; set embed.pad: true")
    return unpack_embedding(packed)


def hide_tokens(mask_BL: Tensor, random: SampleRandom, share: float) -> Tensor:
    """Returns the mask of a batch's tokens with each of them hidden at random; bool (B, L), False at hidden ones.

    Whether a token is hidden does not depend on the padding of its batch.
    """
    return mask_BL & (random.uniform("tokens", mask_BL.shape[1]) >= share)
