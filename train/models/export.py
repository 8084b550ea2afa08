"""A trained cascade stage as a local folder: ``config.json`` and ``model.safetensors``, or shards and their index.

``config.json`` holds ``{"format": 2, "backbone": "unet", "model": {...}, "diffusion": {...}, "trained_steps": n,
"digest": "...", "distilled": null}``; the digest is `digest_weights` of the weights, ``distilled`` a `Distilled`, as a
mapping, of a stage that is. The diffusion settings are stored and returned as plain JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dataprep.io.errors import UserError
from dataprep.io.storage import exists, read_json, write_json
from train.models.backbones import (
    backbone_name,
    build_denoiser,
    find_backbone,
    load_folder_stage,
    read_folder_stage,
)
from train.models.base import Denoiser, DenoiserConfig
from train.models.distilled import Distilled
from train.models.weight_files import MAX_SHARD_BYTES, WEIGHTS_FILE, has_weights, load_tensors, save_tensors

CONFIG_FILE, FORMAT = "config.json", 2


def save_stage(
    folder: str | Path,
    weights: nn.Module | Mapping[str, Tensor],
    config: DenoiserConfig,
    diffusion: Mapping[str, Any],
    trained_steps: int | None,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    distilled: Distilled | None = None,
) -> None:
    """Writes weights (a model or its state dict, any float type; stored as ``dtype``) and their config to ``folder``.

    Weights above ``max_shard_bytes`` are written as shards. ``trained_steps`` None: trained elsewhere, for an unknown
    number of steps.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder, tensors, dtype, max_shard_bytes)
    settings = {
        "format": FORMAT,
        "backbone": backbone_name(config),
        "model": config.model_dump(mode="json"),
        "diffusion": dict(diffusion),
        "trained_steps": trained_steps,
        "digest": digest_weights({name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}),
        "distilled": None if distilled is None else distilled._asdict(),
    }
    # Written last, so that a folder with a config has its weights.
    write_json(str(folder / CONFIG_FILE), settings)


def digest_weights(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of a state dict in float32, with the names, as hex digits."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().float().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_stage_settings(folder: str | Path) -> tuple[DenoiserConfig, dict[str, Any]]:
    """Returns the network's config and the whole content of ``config.json``; raises UserError where it is invalid."""
    path = str(Path(folder) / CONFIG_FILE)
    if not exists(path):
        raise UserError(f"stage {folder}: {CONFIG_FILE} is missing; train this stage first, or name another folder")
    try:
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise TypeError("no mapping")
        if settings.get("format") != FORMAT:
            raise UserError(f"stage {folder}: format {settings.get('format')!r}, this imagen-ray reads {FORMAT}")
        if not isinstance(settings["diffusion"], dict) or not isinstance(settings["trained_steps"], int | None):
            raise TypeError("diffusion has to be a mapping, trained_steps a number or null")
        return find_backbone(settings["backbone"]).config(**settings["model"]), settings
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{path}: invalid ({' '.join(str(error).split())}); export again") from error


def load_stage(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Denoiser, dict[str, Any]]:
    """Returns the network of a stage in eval mode, and the content of ``config.json``.

    A folder in the layout of another library is one too: of its settings ``diffusion`` is returned. On a GPU the
    weights of ours are bfloat16, which halves their memory and saves casting them at each call. Raises UserError
    where files are missing, do not match, or were never trained: an untrained network generates noise.
    """
    if (found := read_folder_stage(str(folder))) is not None:
        network = load_folder_stage(str(folder), found)
        return cast(Denoiser, network.to(device).eval().requires_grad_(False)), {"diffusion": dict(found.diffusion)}
    folder = Path(folder)
    config, settings = read_stage_settings(folder)
    if not has_weights(folder):
        raise UserError(f"stage {folder}: {WEIGHTS_FILE} is missing; train this stage first, or name another folder")
    device = torch.device(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        model = _build_empty(config)
        stored = {name: tensor.to(device, dtype) for name, tensor in load_tensors(folder).items()}
        model.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"stage {folder}: {CONFIG_FILE} and {WEIGHTS_FILE} do not match: {reason}; export again"
        ) from error
    weights = stored
    zero = find_backbone(settings["backbone"]).zero_at_start
    steps = settings["trained_steps"]
    if (steps is not None and steps < 1) or (zero is not None and not bool(weights[zero].any())):
        raise UserError(f"stage {folder}: was never trained, its samples would be noise; train it first")
    finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()]).tolist()
    if broken := [name for name, whole in zip(weights, finite, strict=True) if not whole]:
        raise UserError(
            f"stage {folder}: {len(broken)} tensors are not finite (first: {broken[0]}); export another step"
        )
    return cast(Denoiser, model.eval().requires_grad_(False)), settings


def _build_empty(config: DenoiserConfig) -> nn.Module:
    """Returns a network whose weights are still to be assigned: no memory, and no time to initialise them.

    A network with buffers that are not stored is built for real, or they would be lost.
    """
    with torch.device("meta"):
        model = build_denoiser(config)
    stored = model.state_dict()
    return build_denoiser(config) if any(name not in stored for name, _ in model.named_buffers()) else model
