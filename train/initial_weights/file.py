"""A safetensors file as a source of initial weights."""

from __future__ import annotations

from dataprep.io import storage
from train.initial_weights.base import folder_source


def is_file(path: str) -> bool:
    """Returns whether ``path`` is a safetensors file."""
    return path.endswith(".safetensors") and storage.exists(path)


FILE = folder_source("a safetensors file", is_file, lambda path: [path])
