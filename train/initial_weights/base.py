"""What a source of initial weights is, and the safetensors files that most consist of. Light: loads no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class WeightSource:
    """A kind of place that weights are loaded from, as `train.initial_weights.registry.WEIGHT_SOURCES` lists it.

    Each function takes a path (any fsspec URL); ``shapes`` and ``load`` also "ema" or "raw", which all but checkpoints
    ignore.
    """

    title: str
    recognise: Callable[[str], bool]
    list_files: Callable[[str], list[str]]  # every file whose bytes count
    shapes: Callable[[str, str], Mapping[str, Shape]]  # of every tensor by name, from headers alone
    load: Callable[[str, str], Mapping[str, Tensor]]  # any float type, on the CPU


def read_header(path: str) -> dict[str, Shape]:
    """Returns name -> shape of a safetensors file from its first bytes; raises UserError where it is none."""
    fs, inner = storage.filesystem(path)
    try:
        with fs.open(inner, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size) if size <= MAX_HEADER else "")
            stored = file.seek(0, os.SEEK_END)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if stored < 8 + size + max(ends, default=0):
            raise ValueError("truncated")
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; copy the whole model again") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no whole safetensors file ({type(error).__name__}); save it again") from error


def read_headers(files: Sequence[str]) -> dict[str, Shape]:
    """Returns name -> shape of several safetensors files."""
    return {name: shape for path in files for name, shape in read_header(path).items()}


def load_files(files: Sequence[str]) -> dict[str, Tensor]:
    """Returns the tensors of safetensors files; raises UserError for one that is broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in files:
        with storage.local_copy(path) as local:
            try:
                tensors |= load_file(local)
            except (SafetensorError, OSError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{path}: is no whole safetensors file ({reason}); save it again") from error
    return tensors


def list_weight_files(folder: str, name: str) -> list[str]:
    """Returns the files of weights ``name`` (such as model.safetensors) in a folder: one, or the shards of its index.

    Raises UserError where there are none.
    """
    whole, index = storage.join(folder, name), storage.join(folder, f"{name}.index.json")
    if storage.exists(whole):
        return [whole]
    if storage.exists(index):
        return [index, *list_shards(folder, index)]
    raise UserError(f"{folder}: has no {name}; save the model as safetensors there")


def list_shards(folder: str, index: str) -> list[str]:
    """Returns the files in ``folder`` that the index of weights names; raises UserError where it is none."""
    try:
        return [storage.join(folder, name) for name in sorted(set(storage.read_json(index)["weight_map"].values()))]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index}: is no index of weights ({type(error).__name__}); copy the whole model again"
        ) from error


def only_tensors(files: Sequence[str]) -> list[str]:
    """Returns the safetensors files among ``files``."""
    return [path for path in files if path.endswith(".safetensors")]


def read_settings(folder: str, name: str) -> dict[str, Any]:
    """Returns the JSON object ``folder``/``name``; empty where there is none."""
    content = storage.read_or_none(storage.join(folder, name))
    try:
        value = {} if content is None else json.loads(content)
    except ValueError as error:
        raise UserError(f"{storage.join(folder, name)}: is no JSON ({error}); save it again") from error
    return value if isinstance(value, dict) else {}


def folder_source(
    title: str,
    recognise: Callable[[str], bool],
    files: Callable[[str], list[str]],
    settings: Callable[[str], list[str]] = lambda path: [],
) -> WeightSource:
    """Returns a source whose weights are the safetensors ``files`` of a path; ``settings`` are files beside them."""
    return WeightSource(
        title,
        recognise,
        lambda path: [*settings(path), *files(path)],
        lambda path, kind: read_headers(only_tensors(files(path))),
        lambda path, kind: load_files(only_tensors(files(path))),
    )
