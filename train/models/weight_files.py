"""Weights of a model in a folder: ``model.safetensors``, or shards of it with ``model.safetensors.index.json``.

The layout of transformers and diffusers, which read such folders too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataprep.io.errors import UserError
from dataprep.io.storage import local_copy, write_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # as transformers
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save_tensors(
    folder: Path, tensors: Mapping[str, Tensor], dtype: str = "float32", max_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes floating-point tensors in ``dtype``, as one file or as shards of at most ``max_bytes`` and an index.

    Files are complete or not there; those of an earlier call are removed. A tensor above ``max_bytes`` has a shard of
    its own.
    """
    stored = {name: tensors[name].detach().to(DTYPES[dtype]).cpu().contiguous() for name in sorted(tensors)}
    shards = _split(stored, max_bytes)
    names = [WEIGHTS_FILE]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for old in [*folder.glob("model*.safetensors"), folder / INDEX_FILE]:
        old.unlink(missing_ok=True)
    for name, part in zip(names, shards, strict=True):
        temporary = folder / f".{name}.tmp"
        save_file(part, temporary)
        temporary.replace(folder / name)
    if len(shards) > 1:  # last: a folder with an index has its shards
        places = {key: name for name, part in zip(names, shards, strict=True) for key in part}
        total = sum(tensor.nbytes for tensor in stored.values())
        write_json(str(folder / INDEX_FILE), {"metadata": {"total_size": total}, "weight_map": places})


def _split(tensors: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Returns the tensors in their order as parts of at most ``max_bytes``."""
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if parts[-1] and filled + tensor.nbytes > max_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled += tensor.nbytes
    return parts


def has_weights(folder: Path) -> bool:
    """Returns whether there are weights in ``folder``, in one file or in shards."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / INDEX_FILE).is_file()


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors, as they are stored. Raises UserError for a shard that is missing or damaged."""
    found: dict[str, Tensor] = {}
    for path in list_weight_files(folder):
        try:
            found |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({error}); copy or export it again") from error
    return found


def list_weight_files(folder: Path) -> list[Path]:
    """Returns the files of the weights; raises UserError for a broken index, and a shard that is missing."""
    if not (folder / INDEX_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    try:
        places = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX_FILE}: not an index of shards ({error}); export again") from error
    paths = [folder / Path(name).name for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]}: missing, {len(missing)} of {len(paths)} shards; copy the whole folder")
    return paths


def count_parameters(folder: Path) -> tuple[int, str]:
    """Returns the number of parameters and the type that they are stored in, from the headers alone."""
    count, kinds = 0, set[str]()
    for path in list_weight_files(folder):
        for kind, shape in _read_header(path):
            count += math.prod(shape)
            kinds.add(kind)
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    return count, " and ".join(sorted(names.get(kind, kind) for kind in kinds))


def _read_header(path: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            yield part.get_dtype(), part.get_shape()


def read_tensor_file(path: str) -> Mapping[str, Tensor]:
    """Returns the tensors of one file (any fsspec URL): .safetensors, or a torch state dict.

    Raises ValueError with the reason for one that cannot be read; runs none of the code that a file may hold.
    """
    try:
        with local_copy(path) as local:
            if Path(local).suffix == ".safetensors":
                return load_file(local)
            loaded: Any = torch.load(local, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many types on a broken file
        raise ValueError(" ".join(str(error).split())[:160] or type(error).__name__) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError("not a dict of tensors")
    return loaded
