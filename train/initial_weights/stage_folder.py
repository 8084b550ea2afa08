"""Folders that a training of ours exported: a cascade stage or a small CLIP."""

from __future__ import annotations

from dataprep.io import storage
from train.initial_weights.base import folder_source, list_weight_files, read_settings

WEIGHTS = "model.safetensors"


def is_stage(path: str) -> bool:
    """Returns whether ``path`` is an exported cascade stage."""
    return "backbone" in read_settings(path, "config.json")


def is_clip(path: str) -> bool:
    """Returns whether ``path`` is an exported CLIP."""
    return storage.exists(storage.join(path, "clip.json"))


STAGE = folder_source(
    "an exported stage",
    is_stage,
    lambda path: list_weight_files(path, WEIGHTS),
    lambda path: [storage.join(path, "config.json")],
)
CLIP = folder_source(
    "an exported CLIP",
    is_clip,
    lambda path: list_weight_files(path, WEIGHTS),
    lambda path: [storage.join(path, "clip.json")],
)
