"""Task `diffusion`: one cascade stage, a text-conditional denoiser at one resolution.

Sections are of arXiv 2205.11487. Shape legend: B batch, C channels, H W height and width, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.errors import UserError
from dataprep.io.parquet import read_schema
from dataprep.text.embedding_codec import EMPTY_TEXT_KEY, unpack_embedding
from train.adversary import Adversary, make_adversary
from train.diffusion.guidance import GuidedDenoiser
from train.diffusion.likelihood import NATS_TO_BITS
from train.diffusion.objective import (
    NoisedImages,
    PredictOutput,
    augment_lowres,
    bound_ends,
    denoising_loss,
    log_snr_at_time,
    noise_images,
    to_model_range,
    to_pixels,
    upsample_lowres,
)
from train.diffusion.samplers import ddim, sampling_log_snrs
from train.diffusion.schedules import network_input
from train.loader.loader import Batch
from train.loader.mix_config import DataMix
from train.loader.sampler import SampleRandom, sample_seed
from train.loader.shard_index import ShardIndex
from train.models.backbones import build_denoiser
from train.models.base import Conditions, DenoiserConfig, PaddedTextDenoiser
from train.models.discriminator import pool_text
from train.models.export import save_stage
from train.task import Companion
from train.tasks.diffusion_config import DiffusionStageConfig, DiffusionTrainingConfig
from train.tasks.pack_training import train_on_pack

GRID_STEPS = 16  # network evaluations for a grid of samples
GOLDEN_RATIO = 0.6180339887498949  # multiples of it modulo 1 cover [0, 1) evenly, however many there are


class DenoisingInputs(NamedTuple):
    """What the loss needs of a batch besides the network."""

    noised: NoisedImages
    t_B: Tensor  # times in [0, 1)
    conditions: Conditions


class DiffusionTask:
    """A stage for the training loop; ``text_dim`` is the width of the text embeddings.

    ``empty_text_LD``: the embedding of the empty text, which a `PaddedTextDenoiser` needs; ``adversary``: judges what a
    super-resolution stage predicts.
    """

    component = "unet"

    def __init__(
        self,
        config: DiffusionStageConfig,
        text_dim: int,
        empty_text_LD: np.ndarray | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        self.config, self.text_dim, self.empty_text_LD = config, text_dim, empty_text_LD
        self.adversary = adversary
        self.companions: dict[str, Companion] = {} if adversary is None else {"adversary": adversary}
        self.columns = config.pixel_columns()

    def denoiser_config(self) -> DenoiserConfig:
        """Returns the network's config, with overrides and text width."""
        return self.config.denoiser_config(self.text_dim)

    def build(self) -> nn.Module:
        """Returns a fresh network."""
        model = build_denoiser(self.denoiser_config())
        if self.empty_text_LD is not None:
            cast(PaddedTextDenoiser, model).set_empty_text(torch.from_numpy(self.empty_text_LD))
        return model

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean weighted loss (scalar), and ``x0_mse``, the unweighted error of the clean image.

        And the adversarial term, if any, with what `Adversary.play` logs.
        """
        inputs = self._inputs(batch, random)
        loss_B, x0_hat_BCHW = denoising_loss(bind(model, inputs.conditions), inputs.noised, self.config.diffusion)
        loss, metrics = loss_B.mean(), {"x0_mse": image_error(x0_hat_BCHW, inputs)}
        if self.adversary is None:
            return loss, metrics
        text_BLD, text_BE = inputs.conditions.text_BLD, None
        if self.adversary.sees_text and text_BLD is not None:
            text_BE = pool_text(text_BLD, inputs.conditions.text_mask_BL)
        # The more noise, the more of a good prediction is a mean of many images: alpha^2 is what it counts.
        share_B = inputs.noised.log_snr_B.float().sigmoid()
        term, judged = self.adversary.play(x0_hat_BCHW, inputs.noised.x0_BCHW, text_BE, random, share_B)
        return loss + term, metrics | judged

    def validate(
        self, model: Callable[..., Any], batch: Batch, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`, and the loss per quarter of the time axis, least noise first: pairs of a sum and a count.

        With ``weighting: elbo`` also the bits per dimension and their parts (docs/diffusion.md, equation 10).
        """
        inputs = self._inputs(batch, random)
        loss_B, x0_hat_BCHW = denoising_loss(bind(model, inputs.conditions), inputs.noised, self.config.diffusion)
        metrics = {"x0_mse": image_error(x0_hat_BCHW, inputs)}
        for quarter in range(4):
            inside_B = ((inputs.t_B * 4).long() == quarter).float()
            metrics[f"loss_noise_{quarter + 1}of4"] = torch.stack([(loss_B * inside_B).sum(), inside_B.sum()])
        if self.config.diffusion.weighting == "elbo":
            noise_BCHW = random.normal("latent", *inputs.noised.x0_BCHW.shape[1:])
            metrics |= self._measure_bits(model, inputs, noise_BCHW, loss_B)
        return loss_B.mean(), metrics

    def _measure_bits(
        self, model: Callable[..., Any], inputs: DenoisingInputs, noise_BCHW: Tensor, loss_B: Tensor
    ) -> dict[str, Tensor]:
        """Returns the bound's bits per dimension, whose integral ``loss_B`` is, by part and by quarter of time."""
        predict = bind(model, inputs.conditions)
        prior_B, reconstruction_B = bound_ends(predict, inputs.noised.x0_BCHW, noise_BCHW, self.config.diffusion)
        bits = {"per_dim": prior_B + reconstruction_B + loss_B, "prior": prior_B, "reconstruction": reconstruction_B}
        bits |= {f"noise_{quarter + 1}of4": loss_B * ((inputs.t_B * 4).long() == quarter) for quarter in range(4)}
        return {f"bits_{name}": nats_B.mean() * NATS_TO_BITS for name, nats_B in bits.items()}

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Adds ``inputs``, the `DenoisingInputs` of the batch."""
        x0_BCHW = to_model_range(batch[self.columns[0]])
        if 0 <= random.step < self.config.half_size_steps:  # validation's step is below 0
            x0_BCHW = functional.avg_pool2d(x0_BCHW, 2)
        keep_B = random.uniform("keep") >= self.config.text_drop
        conditions = self._conditions(batch, random, x0_BCHW.shape[-2:])._replace(text_keep_B=keep_B)
        if self.config.token_drop:
            mask_BL = hide_tokens(batch["text_mask_BL"], random, self.config.token_drop)
            conditions = conditions._replace(text_mask_BL=mask_BL)
        t_B = spread_times(random)
        noised = self.noise_images(x0_BCHW, t_B, random.normal("noise", *x0_BCHW.shape[1:]))
        return batch | {"inputs": DenoisingInputs(noised, t_B, conditions)}

    def noise_images(self, x0_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> NoisedImages:
        """Noises a batch to what ``t_B``, uniform in [0, 1), draws."""
        return noise_images(x0_BCHW, t_B, noise_BCHW, self.config.diffusion)

    def complete_inputs(self, inputs: DenoisingInputs) -> DenoisingInputs:
        """Returns what the network learns from: here all that `prepare` made."""
        return inputs

    def _inputs(self, batch: Batch, random: SampleRandom) -> DenoisingInputs:
        inputs: DenoisingInputs = (batch if "inputs" in batch else self.prepare(batch, random))["inputs"]
        return self.complete_inputs(inputs)

    def _conditions(self, batch: Batch, random: SampleRandom, size: Sequence[int]) -> Conditions:
        """Text of the batch; for super-resolution the low-resolution image at ``size`` (height, width).

        The latter has noise of a random level (noise conditioning augmentation, 2.4).
        """
        conditions = Conditions(text_BLD=batch["text_BLD"], text_mask_BL=batch["text_mask_BL"])
        if not self.config.low_resolution:
            return conditions
        config = self.config.diffusion
        low_BCHW = to_model_range(batch[self.columns[1]])
        level_B = random.uniform("lowres_level") * config.lowres_max_level
        up_BCHW = upsample_lowres(low_BCHW, (size[0], size[1]), config.lowres_align_corners)
        noise_BCHW = random.normal("lowres_noise", *up_BCHW.shape[1:])
        noised_BCHW, log_snr_B = augment_lowres(up_BCHW, level_B, noise_BCHW, config)
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
        config = self.config.diffusion
        true_BHWC = batch[self.columns[0]]
        random = SampleRandom.of_batch(seed, -1, batch)
        conditions = self._conditions(batch, random, true_BHWC.shape[1:3])

        def predict(x_BCHW: Tensor, log_snr_B: Tensor, keep_B: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
                seen_BCHW = network_input(x_BCHW, log_snr_B, config.schedule)
                output_BCHW: Tensor = model(seen_BCHW, log_snr_B, conditions._replace(text_keep_B=keep_B))
            return output_BCHW.float()

        denoise = GuidedDenoiser(predict, config.prediction, 1.0)
        start_BCHW = random.normal("draw", 3, *true_BHWC.shape[1:3])
        samples_BCHW = ddim(denoise, start_BCHW, self.preview_levels(), torch.zeros)
        rows = [torch.cat(list(images), dim=1) for images in (to_pixels(samples_BCHW), true_BHWC)]
        return torch.cat(rows).cpu().numpy()

    def preview_levels(self) -> Tensor:
        """Returns the noise levels at which `sample_grid` samples, and the clean end."""
        return sampling_log_snrs(lambda t_B: log_snr_at_time(self.config.diffusion, t_B), GRID_STEPS)

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the stage as `train.models.export.load_stage` reads it."""
        save_stage(folder, weights, self.denoiser_config(), self.config.diffusion.model_dump(mode="json"), step)


def bind(model: Callable[..., Any], conditions: Conditions) -> PredictOutput:
    """Returns the network as a function of the noisy image and its log-SNR."""

    def predict(x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        output_BCHW: Tensor = model(x_BCHW, log_snr_B, conditions)
        return output_BCHW

    return predict


def image_error(x0_hat_BCHW: Tensor, inputs: DenoisingInputs) -> Tensor:
    """Returns the mean squared error of predicted clean images, clipped to their range."""
    return (x0_hat_BCHW.detach().clamp(-1, 1) - inputs.noised.x0_BCHW).square().mean()


def train_diffusion(
    index: str,
    validate: bool,
    config: DiffusionTrainingConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains a stage on this rank from pack shards and their embedding shards; see `train_stage`."""

    def make_task(config: DiffusionTrainingConfig, text_dim: int, empty_text_LD: np.ndarray | None) -> DiffusionTask:
        channels = config.denoiser_config().image_channels
        adversary = make_adversary(config.adversarial, channels, text_dim, config.accumulation, seed)
        return DiffusionTask(config, text_dim, empty_text_LD, adversary)

    return train_stage(make_task, index, validate, config, folder, seed, mix)


def train_stage(
    make_task: Callable[[Any, int, np.ndarray | None], DiffusionTask],
    index: str,
    validate: bool,
    config: DiffusionTrainingConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains the task that ``make_task`` returns for the config, the width of the text, and the empty text's embedding.

    ``index`` is the path of a `train.loader.shard_index.ShardIndex`, for the config's pixel columns and
    ``min_original``; ``validate``, ``mix`` and the result are those of `train_on_pack`.
    """
    shards = ShardIndex.read(index)
    if shards.text_dim is None:
        raise UserError("train: nothing was kept to train on; look at the report's funnel and loosen select")
    padded = config.denoiser_config().caption_tokens() is not None
    empty_text_LD = read_empty_text(str(shards.embed_path(0))) if padded else None
    task = make_task(config, shards.text_dim, empty_text_LD)
    return train_on_pack(task, shards, validate, config, folder, seed, mix)


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


def spread_times(random: SampleRandom) -> Tensor:
    """Returns times (B,) in [0, 1), each uniform, together evenly spread over a global batch (VDM, appendix I.1).

    A function of (seed, step, stream position), so the same for any number of ranks and any accumulation.
    """
    start = sample_seed(random.seed, random.step, 0, "time") / 2**63
    return ((random.index_B.double() * GOLDEN_RATIO + start) % 1.0).float().clamp(max=1 - 1e-7)
