"""Folders in the layouts of diffusers and transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.initial_weights.base import (
    Shape,
    WeightSource,
    folder_source,
    list_shards,
    list_weight_files,
    load_files,
    only_tensors,
    read_headers,
    read_settings,
)

if TYPE_CHECKING:
    from torch import Tensor

UNET, CONFIG, TRANSFORMERS_WEIGHTS = "unet", "config.json", "model.safetensors"
STEM = "diffusion_pytorch_model"
# STEM[.VARIANT].safetensors or STEM.safetensors.index[.VARIANT].json; the one without a variant comes first
WEIGHTS = re.compile(rf"{STEM}(?:\.(\w+))?\.safetensors|{STEM}\.safetensors\.index(?:\.(\w+))?\.json")


def find_unet(path: str) -> str | None:
    """Returns the folder of the U-Net in a diffusers pipeline or model folder; None if it is neither."""
    for folder in (storage.join(path, UNET), path):
        if "_class_name" in read_settings(folder, CONFIG):
            return folder
    return None


def list_unet_files(path: str) -> list[str]:
    """Returns the weight files of the U-Net, of one variant: that without a name, else the first."""
    folder = find_unet(path) or path
    found = {name: match for name in storage.list_files(folder) if (match := WEIGHTS.fullmatch(name))}
    if not found:
        raise UserError(f"{folder}: has no {STEM}.safetensors; save the model as safetensors there")
    name = min(found, key=lambda name: (found[name][1] or found[name][2] or "", name))
    if name.endswith(".json"):
        index = storage.join(folder, name)
        return [index, *list_shards(folder, index)]
    return [storage.join(folder, name)]


def read_unet_shapes(path: str, kind: str) -> Mapping[str, Shape]:
    """Returns the shapes of the U-Net's tensors."""
    return read_headers(only_tensors(list_unet_files(path)))


def load_unet(path: str, kind: str) -> Mapping[str, Tensor]:
    """Returns the U-Net's tensors."""
    return load_files(only_tensors(list_unet_files(path)))


def is_transformers(path: str) -> bool:
    """Returns whether ``path`` is a model folder of transformers."""
    return "model_type" in read_settings(path, CONFIG)


DIFFUSERS = WeightSource(
    "a folder in diffusers' layout",
    lambda path: find_unet(path) is not None,
    lambda path: [storage.join(find_unet(path) or path, CONFIG), *list_unet_files(path)],
    read_unet_shapes,
    load_unet,
)
TRANSFORMERS = folder_source(
    "a folder in transformers' layout",
    is_transformers,
    lambda path: list_weight_files(path, TRANSFORMERS_WEIGHTS),
    lambda path: [storage.join(path, CONFIG)],
)
