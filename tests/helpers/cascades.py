"""A small cascade on disk, with an encoder that has one vector per word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.sampling.config import CascadeConfig, SamplingConfig, StageEntry, write_cascade
from tests.helpers.dits import dit_config
from tests.helpers.unets import unet_config, wake
from train.diffusion.config import DiffusionConfig
from train.models.backbones import build_denoiser
from train.models.base import DenoiserConfig
from train.models.export import save_stage

FAST = SamplingConfig(steps=3, guidance=2.0)
BASE, SR = unet_config("micro-base", text_dim=8), unet_config("micro-sr", text_dim=8)
DIT_BASE, DIT_SR = dit_config("dit-micro-base", text_dim=8), dit_config("dit-micro-sr", text_dim=8)


class WordEncoder:
    """One fixed random vector per word, up to ten words."""

    dim = 8

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        rows = [
            [np.random.default_rng(list(word.encode())).normal(size=8) for word in text.split()[:10]]
            for text in captions
        ]
        return [np.asarray(row, np.float32).reshape(-1, 8) for row in rows]

    def pieces(self, caption: str) -> list[str]:
        return caption.split()[:10]

    def beyond(self, caption: str) -> str:
        return " ".join(caption.split()[10:])


def trained(config: DenoiserConfig) -> Any:
    """Returns a network none of whose parameters is zero."""
    torch.manual_seed(0)
    return wake(build_denoiser(config)).train().requires_grad_(True)


def export(folder: Path, base: DenoiserConfig = BASE, sr: DenoiserConfig = SR) -> Path:
    """Writes a cascade of 8 and 16 pixels to ``folder``."""
    for name, config in (("base", base), ("sr", sr)):
        diffusion = DiffusionConfig().model_dump(mode="json")
        save_stage(folder / name, trained(config), config, diffusion, trained_steps=5)
    stages = [
        StageEntry(name="base", resolution=8, path="base", sampling=FAST),
        StageEntry(name="sr", resolution=16, low_resolution=8, path="sr", sampling=FAST),
    ]
    write_cascade(folder, CascadeConfig(stages=stages, encoder="encoder"))
    (folder / "encoder").mkdir()
    return folder


def difference(one: object, other: object) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())
