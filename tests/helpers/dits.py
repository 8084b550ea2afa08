"""Shared by tests of the diffusion transformer."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.unets import wake
from train.models.backbones import denoiser_config
from train.models.dit.config import DiTConfig
from train.models.dit.dit import DiT


def dit_config(preset: str, **overrides: Any) -> DiTConfig:
    """Returns a preset with fields replaced."""
    config = denoiser_config(preset, overrides)
    assert isinstance(config, DiTConfig)
    return config


def build_awake_dit(config: DiTConfig) -> DiT:
    """Builds a transformer whose zero-initialised layers are not zero, so that every input matters."""
    torch.manual_seed(0)
    return wake(DiT(config))
