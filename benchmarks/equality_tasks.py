"""The tasks of `benchmarks.equality`: each small, with its data, and recording the positions that it sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dataprep.io.pack_format import IMAGE_FEATURES, TEXT_FEATURES
from train.adversary import Adversary
from train.codebook import CodebookAverage
from train.diffusion.objective import to_model_range
from train.loader.loader import Batch, Stream
from train.loader.sampler import SampleRandom
from train.models.refiner.config import PRESETS as REFINERS
from train.models.vq.autoencoder import VqAutoencoder
from train.models.vq.stage_folder import save_autoencoder
from train.task import Task
from train.tasks.adversarial_config import AdversarialConfig
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig
from train.tasks.prior import PriorTask
from train.tasks.prior_config import PriorStageConfig
from train.tasks.refinement import RefinementTask
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.vq import VqTask
from train.tasks.vq_config import VqStageConfig, VqTrainingConfig

BATCH, ROWS, WIDTH = 8, 50, 8
ADVERSARIAL: dict[str, Any] = {"width": 4, "layers": 2, "start": 5, "ramp": 5, "r1_every": 2, "detail": 4}
SR: dict[str, Any] = {"resolution": 16, "low_resolution": 8, "model": "micro-sr"}


class Vectors(Stream):
    """`ROWS` random vectors of `WIDTH` numbers."""

    def __init__(self) -> None:
        super().__init__(ROWS, 0, BATCH)
        self.x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": [str(row) for row in rows], "x": self.x[rows]}


class Images(Stream):
    """`ROWS` images of 16x16 pixels, blocks of random colours, with captions of two random tokens."""

    def __init__(self) -> None:
        super().__init__(ROWS, 0, BATCH)
        random = torch.Generator().manual_seed(1)
        coarse = torch.randint(0, 256, (ROWS, 3, 4, 4), generator=random).float()
        large = nn.functional.interpolate(coarse, scale_factor=4, mode="nearest")
        self.large = large.byte().permute(0, 2, 3, 1).contiguous()
        self.small = nn.functional.avg_pool2d(large, 2).byte().permute(0, 2, 3, 1).contiguous()
        self.text = torch.randn(ROWS, 2, WIDTH, generator=random)

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        batch: Batch = {"key": [str(row) for row in rows], "pixels_16": self.large[rows], "pixels_8": self.small[rows]}
        return batch | {"text_BLD": self.text[rows], "text_mask_BL": torch.ones(len(rows), 2, dtype=torch.bool)}


class Embeddings(Images):
    """Captions of two random tokens with random vectors of length 1, as CLIP's of image and caption."""

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        vectors_BD = nn.functional.normalize(self.text[rows], dim=2).half()
        return super().gather(rows, positions) | {IMAGE_FEATURES: vectors_BD[:, 0], TEXT_FEATURES: vectors_BD[:, 1]}


class Denoise:
    """Denoises the vectors. Most parameters divide unevenly among ranks."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 33, bias=False), nn.SiLU(), nn.Linear(33, 33), nn.Linear(33, WIDTH + 1))

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        error = model(batch["x"] + random.normal("noise", WIDTH))[:, :WIDTH] - batch["x"]
        return error.square().mean(), {}

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Replaced by `record`."""


def record(task: Task, seen: Path) -> Task:
    """Makes a task write the positions that it sees to ``seen``, and export its plain weights; returns it."""
    loss = task.loss

    def record_loss(model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        with open(seen, "a", encoding="utf-8") as file:
            file.write(json.dumps([random.step, random.indices]) + "\n")
        return loss(model, batch, random)

    def export(folder: str, weights: dict[str, Tensor], step: int) -> None:
        save_file(weights, Path(folder) / "weights.safetensors")

    vars(task).update(loss=record_loss, export=export)
    return task


def _make_adversary(accumulation: int) -> Adversary:
    return Adversary(AdversarialConfig(**ADVERSARIAL), 3, WIDTH, accumulation, 0)


def make_denoise(scratch: Path, accumulation: int) -> tuple[Task, Stream]:
    """Returns `Denoise` and its data."""
    return Denoise(), Vectors()


def make_vq(scratch: Path, accumulation: int) -> tuple[Task, Stream]:
    """Returns an autoencoder with a discriminator, and its data."""
    config = VqStageConfig(resolution=16, model="vq-micro", codebook_decay=0.9)
    return VqTask(config, BATCH, _make_adversary(accumulation)), Images()


def make_refinement(scratch: Path, accumulation: int) -> tuple[Task, Stream]:
    """Returns a refinement stage of an autoencoder with random codes, and its data."""
    layout = REFINERS["refiner-micro"].autoencoder
    torch.manual_seed(0)
    model, images = VqAutoencoder(layout), Images()
    book = CodebookAverage(0.9, 0.0, ROWS)
    book.begin(model)
    with torch.no_grad():
        output = model(to_model_range(images.large))
        book.observe(output.latent_BDhw, output.codes_Bhw, SampleRandom(0, 0, list(range(ROWS))))
    book.end_update(True)
    save_autoencoder(scratch, model.state_dict(), layout, 1)
    config = RefinementTrainingConfig(**SR | {"model": "refiner-micro", "autoencoder": "vq"})
    vq = VqTrainingConfig(resolution=16, model="vq-micro")
    return RefinementTask(config.take_from({"vq": vq}), WIDTH, str(scratch)), images


def make_adversarial(scratch: Path, accumulation: int) -> tuple[Task, Stream]:
    """Returns a super-resolution diffusion stage with a discriminator, and its data."""
    config = DiffusionStageConfig(**SR | {"diffusion": {"prediction": "x0", "lowres_max_level": 0.3}})
    return DiffusionTask(config, WIDTH, None, _make_adversary(accumulation)), Images()


def make_prior(scratch: Path, accumulation: int) -> tuple[Task, Stream]:
    """Returns a prior of image embeddings, and its data."""
    return PriorTask(PriorStageConfig(model="prior-micro"), WIDTH, WIDTH), Embeddings()


TASKS: Mapping[str, Callable[[Path, int], tuple[Task, Stream]]] = {
    "": make_denoise,
    "vq with a discriminator": make_vq,
    "refinement": make_refinement,
    "diffusion with a discriminator": make_adversarial,
    "prior": make_prior,
}
