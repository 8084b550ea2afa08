"""Checkpoints: every rank writes its share, then one marker with hashes says that it is whole.

``folder/step-00000100/`` holds ``rank-00000.safetensors`` (the parameters i with i % world == rank, each with its fp32
weight and optimizer slots, whole), ``state.json``, and last ``commit.json`` with the size and sha256 of every file.
Without a marker, or where a file does not match it, a checkpoint is torn: it is named and passed over. Keyed by
parameter, a checkpoint is read at any world size and ZeRO stage. ``folder`` is any fsspec URL.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataprep import storage
from dataprep.schema import UserError
from train.engine import Engine

FORMAT, COMMIT_FILE, STATE_FILE, BUFFERS_FILE = 1, "commit.json", "state.json", "buffers.safetensors"
SEPARATOR = "|"  # between a parameter's name and the slot; neither holds one
log = logging.getLogger(__name__)


def save(engine: Engine, folder: str, step: int, loop_state: dict[str, Any], keep_last: int) -> str:
    """Writes the checkpoint of ``step``, commits it, then deletes all but the last ``keep_last``; gives its path."""
    path = storage.join(folder, f"step-{step:08d}")
    if engine.rank == 0:
        storage.remove(path)  # a torn one of an earlier attempt
    dist.barrier()
    share: dict[str, Tensor] = {}
    for index, (name, slots) in enumerate(engine.full_state()):
        if index % engine.world == engine.rank:
            share |= {f"{name}{SEPARATOR}{slot}": value.contiguous() for slot, value in slots.items()}
    files = [_write(share, path, f"rank-{engine.rank:05d}.safetensors")]
    buffers, updates = engine.buffers(), engine.updates()
    if engine.rank == 0:
        files.append(_write(buffers, path, BUFFERS_FILE))
        state = {"format": FORMAT, "step": step, "updates": updates, "world": engine.world, "loop": loop_state}
        storage.write_json(storage.join(path, STATE_FILE), state)
        files.append(_entry(path, STATE_FILE))
    gathered: list[Any] = [None] * engine.world
    dist.all_gather_object(gathered, files)
    if engine.rank == 0:
        entries = sorted((entry for part in gathered for entry in part), key=lambda entry: str(entry["path"]))
        storage.write_json(storage.join(path, COMMIT_FILE), {"format": FORMAT, "step": step, "files": entries})
        _prune(folder, keep_last)
    dist.barrier()
    return path


def newest(folder: str) -> str | None:
    """The newest whole checkpoint below ``folder``, or None; names each torn one that is newer in the log."""
    for _, path in _steps(folder):
        problem = torn(path)
        if problem is None:
            return path
        log.warning("checkpoint %s is torn (%s): passed over", path, problem)
    return None


def torn(path: str) -> str | None:
    """Why the checkpoint at ``path`` is not whole, or None where it is."""
    marker = storage.join(path, COMMIT_FILE)
    if not storage.exists(marker):
        return f"no {COMMIT_FILE}"
    try:
        files = storage.read_json(marker)["files"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"{COMMIT_FILE} is not readable"
    for entry in files:
        file = storage.join(path, entry["path"])
        if not storage.exists(file):
            return f"{entry['path']} is missing"
        if storage.sha256_file(file) != (entry["sha256"], entry["bytes"]):
            return f"{entry['path']} does not match its hash"
    return None


def load(engine: Engine, path: str) -> tuple[int, dict[str, Any]]:
    """Reads a whole checkpoint into the engine; gives its step and the loop's state."""
    state = storage.read_json(storage.join(path, STATE_FILE))
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {state.get('format')!r}, this imagen-ray reads {FORMAT}")
    tensors: dict[str, dict[str, Tensor]] = {}
    for rank in range(state["world"]):
        for key, value in _read(path, f"rank-{rank:05d}.safetensors").items():
            name, _, slot = key.rpartition(SEPARATOR)
            tensors.setdefault(name, {})[slot] = value
    engine.load_full_state(tensors, state["updates"])
    engine.load_buffers(_read(path, BUFFERS_FILE))
    return int(state["step"]), state["loop"]


def newest_on_all_ranks(folder: str) -> str | None:
    """`newest` as rank 0 sees it, told to every rank, so that all resume from the same one."""
    found: list[Any] = [newest(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    path: str | None = found[0]
    return path


def _steps(folder: str) -> list[tuple[int, str]]:
    """(step, path) of every checkpoint folder, whole or torn, the newest first."""
    if not storage.exists(folder):
        return []
    names = {name.split("/")[0] for name in storage.list_files(folder)}
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    return [(step, storage.join(folder, f"step-{step:08d}")) for step in sorted(steps, reverse=True)]


def _prune(folder: str, keep_last: int) -> None:
    """Deletes all but the newest ``keep_last`` committed checkpoints; torn ones go too."""
    paths = [path for _, path in _steps(folder)]
    committed = [path for path in paths if storage.exists(storage.join(path, COMMIT_FILE))]
    for path in sorted(set(paths) - set(committed[:keep_last])):
        storage.remove(path)


def _write(tensors: dict[str, Tensor], path: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        local = Path(scratch) / name
        save_file(tensors, local)
        storage.publish(local, storage.join(path, name))
    return _entry(path, name)


def _entry(path: str, name: str) -> dict[str, Any]:
    digest, size = storage.sha256_file(storage.join(path, name))
    return {"path": name, "bytes": size, "sha256": digest}


def _read(path: str, name: str) -> dict[str, Tensor]:
    with storage.local_copy(storage.join(path, name)) as local:
        return load_file(local)
