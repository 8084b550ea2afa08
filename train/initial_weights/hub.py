"""A model of the Hugging Face hub, ``hf://owner/name``: downloaded once, then read like the folder that it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from dataprep.io.errors import UserError
from train.initial_weights.base import Shape, WeightSource
from train.initial_weights.library_folders import DIFFUSERS, TRANSFORMERS

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "hf://"
FILES = ["*.json", "*.safetensors", "unet/*.json", "unet/*.safetensors", "README.md"]


@cache
def download_model(path: str) -> str:
    """Returns the local folder of ``hf://owner/name``; downloads what is not in the hub's cache."""
    from huggingface_hub import snapshot_download

    name = path.removeprefix(PREFIX)
    try:
        return str(snapshot_download(name, allow_patterns=FILES))
    except (OSError, ValueError) as error:  # the library's own errors are OSErrors and ValueErrors
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not found on the hub or not reachable ({reason}); check the name, or give a folder"
        ) from error


def _layout(path: str) -> WeightSource:
    folder = download_model(path)
    for source in (DIFFUSERS, TRANSFORMERS):
        if source.recognise(folder):
            return source
    raise UserError(f"{path}: neither in diffusers' nor in transformers' layout; name another model")


def list_files(path: str) -> list[str]:
    """Returns the downloaded files that count."""
    return _layout(path).list_files(download_model(path))


def read_shapes(path: str, kind: str) -> Mapping[str, Shape]:
    """Returns the shapes of all tensors."""
    return _layout(path).shapes(download_model(path), kind)


def load(path: str, kind: str) -> Mapping[str, Tensor]:
    """Returns all tensors."""
    return _layout(path).load(download_model(path), kind)


HUB = WeightSource("a hub model (hf://owner/name)", lambda path: path.startswith(PREFIX), list_files, read_shapes, load)
