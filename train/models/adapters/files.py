"""An adapter as a small safetensors file, and its pairs merged into the weights of a model.

Written as diffusers and peft do: ``<component>.<layer>.lora_A.weight`` and ``.lora_B.weight``, and ``.alpha``, a
number. The component is ``unet`` for a denoiser, ``text_encoder`` for a text encoder. Also read are peft's
``base_model.model.`` in front, ``lora_down`` and ``lora_up``, and sd-scripts' names with ``_`` for ``.``. Alpha is also
in the file's metadata, where diffusers keeps it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.models.adapters.config import AdapterConfig
from train.models.adapters.lora import DOWN, UP, check_shapes, merge_pairs, split_pairs

ADAPTER_FILE = "adapter.safetensors"
METADATA, DIFFUSERS_METADATA = "imagen_ray", "lora_adapter_metadata"  # keys of JSON in a file's metadata
PREFIX = re.compile(
    r"^(base_model\.model\.)?(unet|transformer|prior|text_encoder|clip)\.|^base_model\.model\.|^lora_(unet|te1?)_"
)
HALVES = (
    (re.compile(r"\.lora_A(\.default)?\.weight$|\.lora_down\.weight$|\.lora\.down\.weight$"), 0),
    (re.compile(r"\.lora_B(\.default)?\.weight$|\.lora_up\.weight$|\.lora\.up\.weight$"), 1),
)


@dataclass(frozen=True)
class Adapter:
    """The pairs of a file. ``scales`` is alpha / rank of each layer; layers as the file names them, without prefix."""

    path: str
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]
    settings: Mapping[str, Any]  # what our own files say of themselves


def save_adapter(
    path: Path, tensors: Mapping[str, Tensor], config: AdapterConfig, component: str, **settings: Any
) -> None:
    """Writes the trained tensors of an adapter, float32, with its config and ``settings`` as metadata."""
    stored: dict[str, Tensor] = {}
    pairs = {name.removeprefix(f"{component}."): pair for name, pair in split_pairs(tensors).items()}
    for name, (down, up) in pairs.items():
        key = f"{component}.{name}"
        stored |= {f"{key}.lora_A.weight": down.float().contiguous(), f"{key}.lora_B.weight": up.float().contiguous()}
        stored[f"{key}.alpha"] = torch.tensor(config.scale * config.rank)
    described = config.model_dump(mode="json") | {"component": component} | settings
    theirs = {"r": config.rank, "lora_alpha": config.scale * config.rank, "target_modules": sorted(pairs)}
    metadata = {
        METADATA: json.dumps(described, sort_keys=True),
        DIFFUSERS_METADATA: json.dumps({f"{component}.{key}": value for key, value in theirs.items()}, sort_keys=True),
    }
    save_file(stored, path, metadata={"format": "pt", **metadata})


def load_adapter(path: str) -> Adapter:
    """Reads a LoRA file; raises UserError for one that is missing, broken or of another kind."""
    if not path.endswith(".safetensors") or not storage.exists(path):
        raise UserError(f"adapter {path}: no such safetensors file; name one, or a run with a trained adapter")
    halves: dict[str, dict[int, Tensor]] = {}
    alphas: dict[str, float] = {}
    unknown: list[str] = []
    try:
        with storage.local_copy(path) as local, safe_open(local, framework="pt") as file:
            described = file.metadata() or {}
            settings, theirs = (json.loads(described.get(key, "{}")) for key in (METADATA, DIFFUSERS_METADATA))
            for key in file.keys():  # noqa: SIM118
                if not _sort_tensor(key, file.get_tensor(key), halves, alphas):
                    unknown.append(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"adapter {path}: no safetensors file ({' '.join(str(error).split())}); save it again"
        ) from error
    broken = unknown + [name for name, parts in halves.items() if set(parts) != {0, 1}]
    if broken or not halves:
        raise UserError(
            f"adapter {path}: not a LoRA ({broken[0] if broken else 'it is empty'}); give a file of lora_A and lora_B"
        )
    pairs = {name: (parts[0], parts[1]) for name, parts in halves.items()}
    for name, (down, up) in pairs.items():
        _check_half(path, f"{name}.{DOWN}", down)
        _check_half(path, f"{name}.{UP}", up)
    for key, value in {METADATA: settings, DIFFUSERS_METADATA: theirs}.items():
        if not isinstance(value, dict):
            raise UserError(f"adapter {path}: metadata {key} is {value!r}, no mapping; save it again")
    factor = _read_scale(path, theirs)
    scales = {name: alphas[name] / pairs[name][0].shape[0] if name in alphas else factor for name in pairs}
    return Adapter(path, pairs, scales, settings)


def _check_half(path: str, name: str, value: Tensor) -> None:
    """Raises UserError for a tensor that is no half of a pair: its axes are (rank, in, ...) or (out, rank, ...)."""
    if value.ndim < 2 or not value.numel():
        raise UserError(
            f"adapter {path}: tensor {name} has shape {tuple(value.shape)}; save it with two axes or more, rank above 0"
        )


def _read_scale(path: str, metadata: Mapping[str, Any]) -> float:
    """Returns alpha / rank as diffusers' metadata has it, the same for all layers; 1 where it does not."""
    values = {key.rpartition(".")[2]: value for key, value in metadata.items()}
    if not {"lora_alpha", "r"} <= values.keys():
        return 1.0
    alpha, rank = values["lora_alpha"], values["r"]
    if not isinstance(alpha, int | float) or not isinstance(rank, int | float) or rank <= 0:
        raise UserError(
            f"adapter {path}: metadata {DIFFUSERS_METADATA} has lora_alpha {alpha!r} and r {rank!r}; save it with "
            "numbers, r above 0"
        )
    return alpha / rank


def _sort_tensor(key: str, value: Tensor, halves: dict[str, dict[int, Tensor]], alphas: dict[str, float]) -> bool:
    """Adds a tensor of a file to what it is; returns whether it is anything."""
    bare = PREFIX.sub("", key)
    if bare.endswith(".alpha"):
        if value.numel() == 1:
            alphas[bare.removesuffix(".alpha")] = float(value)
        return value.numel() == 1
    for pattern, half in HALVES:
        if pattern.search(bare):
            halves.setdefault(pattern.sub("", bare), {})[half] = value
            return True
    return False


def match_layers(adapter: Adapter, state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Returns layer in the file -> layer of a model; None where a layer is missing or has another shape."""
    layers = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    known = {name.removeprefix("unet."): name for name in layers}
    known |= {name.replace(".", "_"): layer for name, layer in known.items()}
    matched: dict[str, str] = {}
    for name, (down, up) in adapter.pairs.items():
        layer = known.get(name)
        if layer is None or not check_shapes(state[f"{layer}.weight"].shape, down.shape, up.shape):
            return None
        matched[name] = layer
    return matched


def merge_adapter(state: Mapping[str, Tensor], adapter: Adapter, weight: float) -> dict[str, Tensor]:
    """Returns the state dict of a model with ``weight`` times the adapter in it; `match_layers` must have matched."""
    layers = match_layers(adapter, state)
    assert layers is not None, adapter.path
    pairs = {layers[name]: pair for name, pair in adapter.pairs.items()}
    return merge_pairs(state, pairs, {layers[name]: weight * scale for name, scale in adapter.scales.items()})
