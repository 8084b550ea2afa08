"""The folder of a small CLIP: clip.json, weights, and its tokenizer or frozen text encoder.

For runs without a pretrained CLIP. Shape legend: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.models.clip_config import ClipModelConfig
from train.models.clip_text import TEXT_TOWERS, TextTower

CONFIG_FILE, WEIGHTS_FILE, FORMAT = "clip.json", "model.safetensors", 1


def make_text_tower(config: ClipModelConfig, folder: str) -> TextTower:
    """Returns the config's text tower; ``folder`` has the text encoder (a hub name too), or a part of an export."""
    return TEXT_TOWERS[config.text_tower](config, folder)


def to_clip_range(pixels_BHWC: Tensor) -> Tensor:
    """Converts uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1], the small CLIP's input; channels last."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def save_clip(folder: str | Path, weights: Mapping[str, Tensor], config: ClipModelConfig, text: Any) -> None:
    """Writes a trained CLIP to a local folder; ``text`` is its `TextTower`, or the tokenizer of a trained one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: weights[name].detach().float().cpu().contiguous() for name in sorted(weights)}
    save_file(stored, folder / WEIGHTS_FILE)
    text.save_pretrained(folder)
    # Written last, so that a folder with a clip.json is complete.
    storage.write_json(str(folder / CONFIG_FILE), {"format": FORMAT, "model": config.model_dump(mode="json")})


def load_clip(folder: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, ClipModelConfig, TextTower]:
    """Loads model (eval mode), config and text tower from a local folder; UserError where a part is invalid."""
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"clip {folder}: {name} is missing; name a folder that a clip stage exported")
    settings = storage.read_json(str(folder / CONFIG_FILE))
    if settings.get("format") != FORMAT:
        raise UserError(f"clip {folder}: format {settings.get('format')!r}, this imagen-ray reads {FORMAT}")
    try:
        config = ClipModelConfig(**settings["model"])
        tower = make_text_tower(config, str(folder))
        model = tower.build()
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (KeyError, OSError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise UserError(f"clip {folder}: not loadable ({' '.join(str(error).split())}); export it again") from error
    return tower.attach(model).to(device).eval().requires_grad_(False), config, tower
