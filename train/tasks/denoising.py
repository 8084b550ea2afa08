"""What tasks share that train a denoiser: noising, the loss, validation by noise level, the export.

Shape legend: B batch, C channels, H W height and width, V width of a vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.errors import UserError
from train.diffusion.config import DiffusionConfig
from train.diffusion.objective import ImageLoss, NoisedImages, denoising_loss, noise_images
from train.loader.loader import Batch
from train.loader.sampler import SampleRandom, sample_seed
from train.loader.shard_index import ShardIndex
from train.models.backbones import build_denoiser
from train.models.base import Conditions, DenoiserConfig
from train.models.export import save_stage

GOLDEN_RATIO = 0.6180339887498949  # multiples of it modulo 1 cover [0, 1) evenly, however many there are


class DenoisingInputs(NamedTuple):
    """What the loss needs of a batch besides the network."""

    noised: NoisedImages
    t_B: Tensor  # times in [0, 1)
    conditions: Conditions


class DenoisingTask(ABC):
    """A denoiser for the training loop: subclasses say what is noised, and under which conditions."""

    component = "unet"
    bound = (-1.0, 1.0)  # of clean values, to which a predicted one is clipped before its error is measured
    image_loss: ImageLoss | None = None  # of what is predicted, beside the loss of the network's output

    def __init__(self, diffusion: DiffusionConfig, layout: DenoiserConfig) -> None:
        self.diffusion, self.layout = diffusion, layout

    @abstractmethod
    def clean(self, batch: Batch, random: SampleRandom) -> Tensor:
        """Returns what is noised, float32 (B, C, H, W)."""

    @abstractmethod
    def condition(self, batch: Batch, random: SampleRandom, x0_BCHW: Tensor) -> Conditions:
        """Returns the conditions of a batch, each dropped at random."""

    def build(self) -> nn.Module:
        """Returns a fresh network."""
        return build_denoiser(self.layout)

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean weighted loss (scalar), and `measure_errors`."""
        inputs = self._inputs(batch, random)
        loss_B, x0_hat_BCHW = self.sample_losses(model, inputs)
        return loss_B.mean(), self.measure_errors(x0_hat_BCHW, inputs.noised.x0_BCHW)

    def validate(
        self, model: Callable[..., Any], batch: Batch, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`, and the loss per quarter of the time axis, least noise first: pairs of a sum and a count."""
        inputs = self._inputs(batch, random)
        loss_B, x0_hat_BCHW = self.sample_losses(model, inputs)
        metrics = self.measure_errors(x0_hat_BCHW, inputs.noised.x0_BCHW)
        for quarter in range(4):
            inside_B = ((inputs.t_B * 4).long() == quarter).float()
            metrics[f"loss_noise_{quarter + 1}of4"] = torch.stack([(loss_B * inside_B).sum(), inside_B.sum()])
        return loss_B.mean(), metrics | self.measure_more(model, inputs, loss_B, random)

    def measure_errors(self, x0_hat_BCHW: Tensor, x0_BCHW: Tensor) -> dict[str, Tensor]:
        """Returns ``x0_mse``, the unweighted error of what is predicted."""
        return {"x0_mse": (x0_hat_BCHW.detach().clamp(*self.bound) - x0_BCHW).square().mean()}

    def measure_more(
        self, model: Callable[..., Any], inputs: DenoisingInputs, loss_B: Tensor, random: SampleRandom
    ) -> dict[str, Tensor]:
        """Returns further metrics of held-out data."""
        return {}

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Adds ``inputs``, the `DenoisingInputs` of the batch."""
        x0_BCHW = self.clean(batch, random)
        conditions, t_B = self.condition(batch, random, x0_BCHW), spread_times(random)
        noised = self.noise_images(x0_BCHW, t_B, random.normal("noise", *x0_BCHW.shape[1:]))
        return batch | {"inputs": DenoisingInputs(noised, t_B, conditions)}

    def noise_images(self, x0_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> NoisedImages:
        """Noises a batch to what ``t_B``, uniform in [0, 1), draws."""
        return noise_images(x0_BCHW, t_B, noise_BCHW, self.diffusion)

    def complete_inputs(self, inputs: DenoisingInputs) -> DenoisingInputs:
        """Returns what the network learns from: here all that `prepare` made."""
        return inputs

    def _inputs(self, batch: Batch, random: SampleRandom) -> DenoisingInputs:
        inputs: DenoisingInputs = (batch if "inputs" in batch else self.prepare(batch, random))["inputs"]
        return self.complete_inputs(inputs)

    def sample_losses(self, model: Callable[..., Any], inputs: DenoisingInputs) -> tuple[Tensor, Tensor]:
        """Returns the weighted loss per sample (B,), and what is predicted (B, C, H, W)."""
        return denoising_loss(bind(model, inputs.conditions), inputs.noised, self.diffusion, self.image_loss)

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the stage as `train.models.export.load_stage` reads it."""
        save_stage(folder, weights, self.layout, self.diffusion.model_dump(mode="json"), step)


def bind(model: Callable[..., Any], conditions: Conditions) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the network as a function of the noisy image and its log-SNR."""

    def predict(x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        output_BCHW: Tensor = model(x_BCHW, log_snr_B, conditions)
        return output_BCHW

    return predict


def drop_vectors(vector_BV: Tensor, share: float, random: SampleRandom, name: str) -> Tensor:
    """Returns the vectors, float32, with a random ``share`` of the rows set to zero, which stands for none."""
    keep_B = random.uniform(name) >= share
    return vector_BV.float() * keep_B[:, None]


def perturb_vectors(vector_BV: Tensor, size: float, random: SampleRandom, name: str) -> Tensor:
    """Returns unit vectors, float32, turned by Gaussian noise whose length is ``size`` in the root mean square.

    The cosine of a vector and what it becomes is about 1 / sqrt(1 + size^2).
    """
    width = vector_BV.shape[1]
    return functional.normalize(vector_BV.float() + random.normal(name, width) * (size / width**0.5), dim=1)


def read_text_width(shards: ShardIndex) -> int:
    """Returns the width of the text embeddings; raises UserError where there are none."""
    if shards.text_dim is None:
        raise UserError("train: nothing was kept to train on; look at the report's funnel and loosen select")
    return shards.text_dim


def spread_times(random: SampleRandom) -> Tensor:
    """Returns times (B,) in [0, 1), each uniform, together evenly spread over a global batch (VDM, appendix I.1).

    A function of (seed, step, stream position), so the same for any number of ranks and any accumulation.
    """
    start = sample_seed(random.seed, random.step, 0, "time") / 2**63
    return ((random.index_B.double() * GOLDEN_RATIO + start) % 1.0).float().clamp(max=1 - 1e-7)
