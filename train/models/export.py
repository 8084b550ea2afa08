"""A trained cascade stage as a folder: ``config.json`` and ``model.safetensors``.

The folder is local. ``config.json`` holds ``{"format": 1, "unet": {...}, "diffusion": {...}, "trained_steps": n}``; the
diffusion settings pass through here unread, as plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataprep.schema import UserError
from dataprep.storage import exists, read_json, write_json
from train.models.unet import UNet, UNetConfig

CONFIG_FILE, WEIGHTS_FILE, FORMAT = "config.json", "model.safetensors", 1


def save_stage(
    folder: str | Path,
    state: UNet | Mapping[str, Tensor],
    unet: UNetConfig,
    diffusion: Mapping[str, Any],
    trained_steps: int,
) -> None:
    """Writes weights (a model or its state dict, any float type; stored as float32) and their config to ``folder``."""
    tensors = state.state_dict() if isinstance(state, UNet) else state
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    temporary = folder / f".{WEIGHTS_FILE}.tmp"
    save_file(stored, temporary)
    temporary.replace(folder / WEIGHTS_FILE)
    settings = {
        "format": FORMAT,
        "unet": unet.model_dump(mode="json"),
        "diffusion": dict(diffusion),
        "trained_steps": trained_steps,
    }
    # Last, so that a folder with a config has its weights.
    write_json(str(folder / CONFIG_FILE), settings)


def load_stage(folder: str | Path, device: str | torch.device = "cpu") -> tuple[UNet, dict[str, Any]]:
    """Reads a stage: the U-Net in eval mode, and the settings as stored in ``config.json``.

    Raises UserError where files are missing, do not belong together, or were never trained: an untrained network's last
    convolution is zero, and its samples would be plain noise.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not exists(str(folder / name)):
            raise UserError(f"stage {folder}: {name} is missing; train this stage first, or name another folder")
    settings = read_json(str(folder / CONFIG_FILE))
    if settings.get("format") != FORMAT:
        raise UserError(f"stage {folder}: format {settings.get('format')!r}, this imagen-ray reads {FORMAT}")
    try:
        model = UNet(UNetConfig(**settings["unet"]))
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (KeyError, ValidationError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"stage {folder}: {CONFIG_FILE} and {WEIGHTS_FILE} do not fit: {reason}; export again"
        ) from error
    if settings["trained_steps"] < 1 or not bool(model.out.weight.any()):
        raise UserError(f"stage {folder}: was never trained, its samples would be noise; train it first")
    broken = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
    if broken:
        raise UserError(
            f"stage {folder}: {len(broken)} tensors are not finite (first: {broken[0]}); export another step"
        )
    return model.to(device).eval().requires_grad_(False), settings
