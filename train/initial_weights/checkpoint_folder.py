"""A checkpoint of the training loop, or the newest of a folder of them, as a source of initial weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dataprep.io import storage
from train.checkpoint_files import BUFFERS_FILE, COMMIT_FILE, STATE_FILE
from train.initial_weights.base import Shape, WeightSource, only_tensors, read_header

if TYPE_CHECKING:
    from torch import Tensor

STEP = re.compile(r"step-\d+")


def find_checkpoint(path: str) -> str | None:
    """Returns the checkpoint at ``path``, or the newest committed one below it; None if there is none."""
    if storage.exists(storage.join(path, COMMIT_FILE)):
        return path
    if not storage.exists(path):
        return None
    folders = [storage.join(path, name) for name in storage.list_folders(path) if STEP.fullmatch(name)]
    whole = [folder for folder in sorted(folders) if storage.exists(storage.join(folder, COMMIT_FILE))]
    return whole[-1] if whole else None


def list_files(path: str) -> list[str]:
    """Returns the files of the checkpoint."""
    folder = _found(path)
    return [
        storage.join(folder, entry["path"]) for entry in storage.read_json(storage.join(folder, COMMIT_FILE))["files"]
    ]


def read_shapes(path: str, kind: str) -> Mapping[str, Shape]:
    """Returns the shapes of parameters and buffers."""
    folder = _found(path)
    model = storage.read_json(storage.join(folder, STATE_FILE))["model"]
    buffers = [file for file in only_tensors(list_files(path)) if file.endswith(BUFFERS_FILE)]
    shapes = {name: tuple(shape) for name, shape in model.items()}
    return shapes | {name: shape for file in buffers for name, shape in read_header(file).items()}


def load(path: str, kind: str) -> Mapping[str, Tensor]:
    """Returns EMA or raw weights and buffers."""
    from train.resume import read_weights_at

    return read_weights_at(_found(path), kind)[0]


def _found(path: str) -> str:
    folder = find_checkpoint(path)
    assert folder is not None, path
    return folder


CHECKPOINT = WeightSource("a checkpoint", lambda path: find_checkpoint(path) is not None, list_files, read_shapes, load)
