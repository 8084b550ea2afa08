"""Folders that a training of ours exported: a cascade stage, an autoencoder or a small CLIP."""

from __future__ import annotations

from dataprep.io import storage
from train.initial_weights.base import folder_source, list_weight_files, read_settings

WEIGHTS = "model.safetensors"


def is_stage(path: str) -> bool:
    """Returns whether ``path`` is an exported cascade stage."""
    return "backbone" in read_settings(path, "config.json")


def is_autoencoder(path: str) -> bool:
    """Returns whether ``path`` is an exported autoencoder of `task: vq`."""
    layout = read_settings(path, "config.json").get("model")
    return isinstance(layout, dict) and "codes" in layout


def is_clip(path: str) -> bool:
    """Returns whether ``path`` is an exported CLIP."""
    return storage.exists(storage.join(path, "clip.json"))


STAGE = folder_source(
    "an exported stage",
    is_stage,
    lambda path: list_weight_files(path, WEIGHTS),
    lambda path: [storage.join(path, "config.json")],
)
AUTOENCODER = folder_source(
    "an exported autoencoder",
    is_autoencoder,
    lambda path: list_weight_files(path, WEIGHTS),
    lambda path: [storage.join(path, "config.json")],
)
CLIP = folder_source(
    "an exported CLIP",
    is_clip,
    lambda path: list_weight_files(path, WEIGHTS),
    lambda path: [storage.join(path, "clip.json")],
)
