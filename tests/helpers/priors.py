"""A cascade with a prior and a decoder: as overrides of the smoke config, and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eval.clip.scorer import ClipScorer
from eval.sampling.config import CascadeConfig, StageEntry, write_cascade
from tests.helpers.cascades import FAST, trained
from tests.helpers.unets import unet_config
from train.diffusion.config import DiffusionConfig
from train.models.backbones import denoiser_config
from train.models.export import save_stage

# Of configs/smoke.yaml.
WITH_PRIOR = [
    "score.embeddings=true",
    "score.text_embeddings=true",
    "pack.features=[clip_embedding, clip_text_embedding]",
    "train.prior={task: prior, model: prior-micro, steps: 6, batch_size: 8, warmup_steps: 2, log_every: 2}",
    "train.base.image_embedding=true",
]
WIDTH = 3  # of the embeddings of `make_colour_scorer`


class ColourTowers:
    """Features of an image are its mean colour, those of a caption what its first letters spell: r, g or b."""

    def encode_image(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        return image_BHWC.float().mean((1, 2)) + 1

    def encode_text(self, ids_BL: torch.Tensor) -> torch.Tensor:
        return ids_BL.float()


def make_colour_scorer() -> ClipScorer:
    """Returns a CLIP of colours."""

    def tokenize(captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1 + 9 * caption.count(letter) for letter in "rgb"] for caption in captions])

    return ClipScorer(ColourTowers(), lambda image: torch.from_numpy(np.array(image)), tokenize)


def export_with_prior(folder: Path, text: bool = True, clip: str | None = "clip") -> Path:
    """Writes a cascade of a prior, a decoder of 8 pixels and a stage of 16 to ``folder``."""
    x0, v = DiffusionConfig(prediction="x0"), DiffusionConfig()
    parts = {
        "prior": (denoiser_config("prior-micro", {"text_dim": 8, "image_channels": WIDTH}), x0),
        "base": (unet_config("micro-base", text_dim=8, image_embedding_dim=WIDTH), v),
        "sr": (unet_config("micro-sr", text_dim=8), v),
    }
    for name, (config, diffusion) in parts.items():
        save_stage(folder / name, trained(config), config, diffusion.model_dump(mode="json"), trained_steps=5)
    stages = [
        StageEntry(name="base", resolution=8, path="base", text=text, sampling=FAST),
        StageEntry(name="sr", resolution=16, low_resolution=8, path="sr", sampling=FAST),
    ]
    prior = StageEntry(name="prior", resolution=1, path="prior", sampling=FAST)
    write_cascade(folder, CascadeConfig(prior=prior, stages=stages, encoder="encoder", clip=clip))
    (folder / "encoder").mkdir()
    return folder
