"""A model of the Hugging Face hub, ``hf://owner/name``: downloaded once, then read like the folder that it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dataprep.io.errors import UserError
from dataprep.io.hub import HUB_PREFIX, WantedFiles, download_model
from train.initial_weights.base import Shape, WeightSource
from train.initial_weights.library_folders import DIFFUSERS, TRANSFORMERS, UNET

if TYPE_CHECKING:
    from torch import Tensor

WANTED = WantedFiles(folders=("", UNET), weights=("", UNET))


def download_weights(path: str) -> str:
    """Returns the local folder of ``hf://owner/name``, with the configs and weights that a training begins from."""
    return download_model(path, WANTED)


def _layout(path: str) -> WeightSource:
    folder = download_weights(path)
    for source in (DIFFUSERS, TRANSFORMERS):
        if source.recognise(folder):
            return source
    raise UserError(f"{path}: neither in diffusers' nor in transformers' layout; name another model")


def list_files(path: str) -> list[str]:
    """Returns the downloaded files that count."""
    return _layout(path).list_files(download_weights(path))


def read_shapes(path: str, kind: str) -> Mapping[str, Shape]:
    """Returns the shapes of all tensors."""
    return _layout(path).shapes(download_weights(path), kind)


def load(path: str, kind: str) -> Mapping[str, Tensor]:
    """Returns all tensors."""
    return _layout(path).load(download_weights(path), kind)


HUB = WeightSource(
    "a hub model (hf://owner/name)", lambda path: path.startswith(HUB_PREFIX), list_files, read_shapes, load
)
