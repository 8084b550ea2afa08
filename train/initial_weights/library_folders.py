"""Folders in the layouts of diffusers and transformers."""

from __future__ import annotations

from dataprep.io import storage
from train.initial_weights.base import folder_source, list_weight_files, read_settings

UNET, CONFIG = "unet", "config.json"
DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"


def find_unet(path: str) -> str | None:
    """Returns the folder of the U-Net in a diffusers pipeline or model folder; None if it is neither."""
    for folder in (storage.join(path, UNET), path):
        if "_class_name" in read_settings(folder, CONFIG):
            return folder
    return None


def is_transformers(path: str) -> bool:
    """Returns whether ``path`` is a model folder of transformers."""
    return "model_type" in read_settings(path, CONFIG)


DIFFUSERS = folder_source(
    "a folder in diffusers' layout",
    lambda path: find_unet(path) is not None,
    lambda path: list_weight_files(find_unet(path) or path, DIFFUSERS_WEIGHTS),
    lambda path: [storage.join(find_unet(path) or path, CONFIG)],
)
TRANSFORMERS = folder_source(
    "a folder in transformers' layout",
    is_transformers,
    lambda path: list_weight_files(path, TRANSFORMERS_WEIGHTS),
    lambda path: [storage.join(path, CONFIG)],
)
