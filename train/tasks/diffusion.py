"""The task of one cascade stage: a text-conditional U-Net that learns to undo noise, at one resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataprep.schema import Config
from train.data import Batch, SampleRandom, sample_seed
from train.diffusion.guidance import guided_denoiser
from train.diffusion.objective import DiffusionConfig, augment_lowres, loss, to_model_range, to_pixels, upsample
from train.diffusion.samplers import ddim, sampling_log_snrs
from train.models.export import save_stage
from train.models.presets import unet_config
from train.models.unet import UNet, UNetConfig

GRID_STEPS = 16  # network evaluations for a grid of samples
GOLDEN = 0.6180339887498949  # steps of this size, modulo 1, cover [0, 1) evenly however many there are


class DiffusionStageConfig(Config):
    """What one stage learns."""

    resolution: int = Field(description="height and width of the images that it makes")
    low_resolution: int | None = Field(None, ge=1, description="of the image it starts from; None: the base stage")
    crop: int | None = Field(None, ge=1, description="train on random crops of this size; None: on whole images")
    min_original: int = Field(
        0, ge=0, description="train on pictures whose original had so many pixels a shorter side; smaller were enlarged"
    )
    model: str = Field("tiny-base", description="U-Net preset")
    unet: dict[str, Any] = Field(default_factory=dict, description="fields of the preset to replace")
    diffusion: DiffusionConfig = Field(default=DiffusionConfig(), description="noise, prediction, loss weighting")
    text_drop: float = Field(0.1, ge=0, le=1, description="share of samples trained without text, for guidance (2.2)")

    @model_validator(mode="after")
    def _check_stage(self) -> Self:
        config = unet_config(self.model, **self.unet)
        side = self.crop or self.resolution
        if side > self.resolution:
            raise ValueError(f"crop={self.crop} is larger than resolution={self.resolution}; take a smaller crop")
        if side % config.size_multiple():
            raise ValueError(
                f"model={self.model} needs sizes that are multiples of {config.size_multiple()}, "
                f"not {side}; change resolution or crop"
            )
        if config.lowres != (self.low_resolution is not None):
            want = "a super-resolution" if self.low_resolution else "a base"
            raise ValueError(f"model={self.model} is not {want} model; low_resolution={self.low_resolution} needs one")
        if config.lowres_residual and self.diffusion.prediction != "x0":
            raise ValueError(
                f"model={self.model} starts as the resized image, so it predicts that: set diffusion.prediction to x0, "
                f"not {self.diffusion.prediction}"
            )
        if self.low_resolution and self.resolution % self.low_resolution:
            raise ValueError(f"low_resolution={self.low_resolution} does not divide resolution={self.resolution}")
        return self


class DiffusionTask:
    """A stage for the training loop; ``text_dim`` is the width of the text embeddings."""

    def __init__(self, config: DiffusionStageConfig, text_dim: int) -> None:
        self.config, self.text_dim = config, text_dim
        self.columns = stage_columns(config)

    def unet_config(self) -> UNetConfig:
        """The layout of the U-Net, with the overrides and the text width put in."""
        return unet_config(self.config.model, **(self.config.unet | {"text_dim": self.text_dim}))

    def build(self) -> UNet:
        """A fresh U-Net."""
        return UNet(self.unet_config())

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean weighted loss of the batch (scalar), and ``x0_mse``, the plain error of the clean image."""
        loss_B, _, error = self._losses(model, batch, random)
        return loss_B.mean(), {"x0_mse": error}

    def validate(
        self, model: Callable[..., Any], batch: Batch, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`, and the loss in each quarter of the time axis, little noise first: pairs of a sum and a count."""
        loss_B, t_B, error = self._losses(model, batch, random)
        metrics = {"x0_mse": error}
        for quarter in range(4):
            inside_B = ((t_B * 4).long() == quarter).float()
            metrics[f"loss_noise_{quarter + 1}of4"] = torch.stack([(loss_B * inside_B).sum(), inside_B.sum()])
        return loss_B.mean(), metrics

    def _losses(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted loss of each sample (B,), its time (B,), and the mean error of the clean image."""
        config = self.config.diffusion
        x0_BCHW = to_model_range(batch[self.columns[0]])
        device = x0_BCHW.device
        condition = {
            "text_BLD": batch["text_BLD"],
            "text_mask_BL": batch["text_mask_BL"],
            "text_keep_B": (random.uniform("keep") >= self.config.text_drop).to(device),
        }
        if self.config.low_resolution:
            condition |= self._lowres(batch, random, x0_BCHW.shape[-2:])

        def denoise(x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
            output_BCHW: Tensor = model(x_BCHW, log_snr_B, **condition)
            return output_BCHW

        noise_BCHW, t_B = random.normal("noise", *x0_BCHW.shape[1:]).to(device), even_times(random).to(device)
        loss_B, x0_hat_BCHW = loss(denoise, x0_BCHW, t_B, noise_BCHW, config)
        return loss_B, t_B, (x0_hat_BCHW.clamp(-1, 1) - x0_BCHW).square().mean()

    def _lowres(self, batch: Batch, random: SampleRandom, size: Sequence[int]) -> dict[str, Tensor]:
        """The low-resolution input at ``size`` (height, width) with noise of a random level (augmentation, 2.4)."""
        config = self.config.diffusion
        low_BCHW = to_model_range(batch[self.columns[1]])
        level_B = random.uniform("lowres_level").to(low_BCHW.device) * config.lowres_max_level
        up_BCHW = upsample(low_BCHW, (size[0], size[1]))
        noise_BCHW = random.normal("lowres_noise", *up_BCHW.shape[1:]).to(low_BCHW.device)
        noised_BCHW, log_snr_B = augment_lowres(up_BCHW, level_B, noise_BCHW, config)
        return {"lowres_BCHW": noised_BCHW, "lowres_log_snr_B": log_snr_B}

    @torch.no_grad()
    def draw(self, weights: dict[str, Tensor], batch: Batch, seed: int) -> np.ndarray:
        """The stage's own images for the captions of a batch above the true ones, uint8 RGB (2H, n W, 3).

        Quick and rough: no guidance, few steps; a super-resolution stage starts from the batch's true small images.
        """
        model = self.build()
        model.load_state_dict(weights)
        model.eval()
        config = self.config.diffusion
        true_BHWC = batch[self.columns[0]]
        condition = {"text_BLD": batch["text_BLD"], "text_mask_BL": batch["text_mask_BL"]}
        random = SampleRandom(seed, -1, batch["index"].tolist())
        if self.config.low_resolution:
            condition |= self._lowres(batch, random, true_BHWC.shape[1:3])
        denoise = guided_denoiser(
            lambda x_BCHW, log_snr_B, keep_B: model(x_BCHW, log_snr_B, text_keep_B=keep_B, **condition),
            config.prediction,
            1.0,
        )
        start_BCHW = random.normal("draw", 3, *true_BHWC.shape[1:3])
        drawn_BCHW = ddim(denoise, start_BCHW, sampling_log_snrs(config.log_snr, GRID_STEPS), torch.zeros)
        rows = [torch.cat(list(images), dim=1) for images in (to_pixels(drawn_BCHW), true_BHWC)]
        return torch.cat(rows).numpy()

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the stage as `train.models.export.load_stage` reads it."""
        save_stage(folder, weights, self.unet_config(), self.config.diffusion.model_dump(mode="json"), step)


def stage_columns(config: DiffusionStageConfig) -> tuple[str, ...]:
    """The pixel columns that the stage reads: its own resolution, then the low one."""
    low = (f"pixels_{config.low_resolution}",) if config.low_resolution else ()
    return (f"pixels_{config.resolution}", *low)


def even_times(random: SampleRandom) -> Tensor:
    """Times (B,) in [0, 1), each uniform, together evenly spread over a global batch (VDM, appendix I.1).

    A function of (seed, step, stream position), so the same whatever the ranks and the accumulation.
    """
    start = sample_seed(random.seed, random.step, 0, "time") / 2**63
    times = [(start + index * GOLDEN) % 1.0 for index in random.indices]
    return torch.tensor(times, dtype=torch.float64).float().clamp(max=1 - 1e-7)
