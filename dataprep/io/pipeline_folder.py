"""Where the text encoder is in a model's folder: at its top, or in two folders of diffusers' layout."""

from __future__ import annotations

from pathlib import Path

PIPELINE_FILE = "model_index.json"  # of a folder in diffusers' layout


def encoder_folders(path_or_name: str) -> tuple[str, str]:
    """Returns where weights and tokenizer are: both at ``path_or_name``, or in two folders of diffusers' layout."""
    folder = Path(path_or_name)
    if (folder / PIPELINE_FILE).is_file():
        return str(folder / "text_encoder"), str(folder / "tokenizer")
    return path_or_name, path_or_name
