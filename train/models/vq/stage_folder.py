"""A trained autoencoder as a local folder: ``config.json`` and its weights, as of a cascade stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dataprep.io.errors import UserError
from dataprep.io.storage import exists, read_json, write_json
from train.models.vq.autoencoder import VqAutoencoder
from train.models.vq.config import VqConfig
from train.models.weight_files import has_weights, load_tensors, save_tensors

CONFIG_FILE, FORMAT = "config.json", 1


def save_autoencoder(folder: str | Path, weights: Mapping[str, Tensor], config: VqConfig, trained_steps: int) -> None:
    """Writes a state dict and its config to ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder, weights)
    settings: dict[str, Any] = {"format": FORMAT, "model": config.model_dump(mode="json")}
    # Written last, so that a folder with a config has its weights.
    write_json(str(folder / CONFIG_FILE), {**settings, "trained_steps": trained_steps})


def load_autoencoder(folder: str | Path) -> VqAutoencoder:
    """Returns the autoencoder in ``folder``, float32 on the CPU, in eval mode and without gradients.

    Raises UserError where files are missing, do not match, or were never trained.
    """
    path = str(Path(folder) / CONFIG_FILE)
    if not exists(path) or not has_weights(Path(folder)):
        raise UserError(f"autoencoder {folder}: {CONFIG_FILE} or its weights are missing; train task: vq first")
    try:
        settings = read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({' '.join(str(error).split())}); train again") from error
    try:
        model = VqAutoencoder(VqConfig.model_validate(settings["model"], strict=False))
        model.load_state_dict({name: tensor.float() for name, tensor in load_tensors(Path(folder)).items()})
    except (KeyError, TypeError, ValidationError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit its weights ({' '.join(str(error).split())}); train again") from error
    if not bool(torch.as_tensor(model.codebook).any()):
        raise UserError(f"autoencoder {folder}: its codebook was never trained; train task: vq first")
    return model.eval().requires_grad_(False)
