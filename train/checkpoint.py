"""Checkpoints: every rank writes its share, then rank 0 writes a marker with hashes, which commits the checkpoint.

``folder/step-00000100/`` holds ``rank-00000.safetensors`` (the parameters i with i % world == rank, each with its fp32
weight and optimizer slots, whole), ``buffers.safetensors``, ``state.json``, and last ``commit.json`` with the size and
sha256 of every file. A checkpoint without a marker, or with a file that does not match it, is torn: it is logged and
skipped. Keyed by parameter, a checkpoint loads at any world size and ZeRO stage. ``folder`` is any fsspec URL; loading
executes no code from it.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.config import TrainConfig
from train.engine import MASTER, Engine
from train.optimizers import EMA

FORMAT, COMMIT_FILE, STATE_FILE, BUFFERS_FILE = 2, "commit.json", "state.json", "buffers.safetensors"
SEPARATOR = "|"  # between a parameter's name and its slot; neither contains it
WEIGHT_SLOTS = {"ema": EMA, "raw": MASTER}  # kinds of weights that `read_weights` returns
log = logging.getLogger(__name__)


class CheckpointSaver:
    """Writes checkpoints of an engine, one at a time, while training continues by at most ``overlap_save`` updates.

    `save` copies this rank's share to host memory, a collective; a thread then writes files, hashes and marker, and
    communicates with the other ranks' threads over its own process group. ``identity`` is stored, and compared by
    `load_checkpoint`. Every method is collective.
    """

    def __init__(self, engine: Engine, folder: str, config: TrainConfig, identity: Mapping[str, Any]) -> None:
        self.engine, self.folder, self.config, self.identity = engine, folder, config, dict(identity)
        timeout = timedelta(seconds=config.hang_seconds)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if engine.world > 1 else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[tuple[str, int]] | None = None
        self.begun = 0  # step of the newest checkpoint, finished or not

    def save(self, step: int, loop_state: dict[str, Any]) -> None:
        """Starts the checkpoint of ``step``; the previous one must have been collected with `wait`."""
        assert self.writing is None, "collect the previous checkpoint with wait()"
        engine, share = self.engine, dict[str, Tensor]()
        for index, (name, slots) in enumerate(engine.full_state()):
            if index % engine.world == engine.rank:
                share |= {f"{name}{SEPARATOR}{slot}": value.contiguous() for slot, value in slots.items()}
        buffers = engine.buffers()
        state: dict[str, Any] = {"format": FORMAT, "step": step, "updates": engine.updates(), "world": engine.world}
        state |= {"identity": self.identity, "model": _parameter_shapes(engine), "loop": loop_state}
        self.writing, self.begun = self.pool.submit(self._write, step, share, buffers, state), step

    def due(self, step: int) -> bool:
        """Returns whether to collect an unfinished checkpoint: written on this rank, or ``step`` is too far past it.

        So a failure repeats at most ``checkpoint_every + overlap_save`` updates.
        """
        if self.writing is None:
            return False
        return self.writing.done() or step - self.begun >= self.config.overlap_save

    def wait(self) -> tuple[str, int] | None:
        """Waits for the unfinished checkpoint and returns its path and step; None if there is none.

        Raises RuntimeError on every rank if one could not write its share.
        """
        writing, self.writing = self.writing, None
        return writing.result() if writing is not None else None

    def close(self) -> None:
        """Stops the thread after it has finished the unfinished checkpoint."""
        self.pool.shutdown()

    def _write(
        self, step: int, share: dict[str, Tensor], buffers: dict[str, Tensor], state: dict[str, Any]
    ) -> tuple[str, int]:
        path = checkpoint_path(self.folder, step)
        rank = self.engine.rank
        self._run_on_all_ranks(lambda: storage.remove(path) if rank == 0 else None)  # a torn one of an earlier attempt
        parts = self._run_on_all_ranks(lambda: self._write_share(path, share, buffers, state))
        self._run_on_all_ranks(lambda: self._commit(path, step, parts) if rank == 0 else None)
        return path, step

    def _write_share(
        self, path: str, share: dict[str, Tensor], buffers: dict[str, Tensor], state: dict[str, Any]
    ) -> list[dict[str, Any]]:
        files = [_write_tensors(share, path, rank_file(self.engine.rank))]
        if self.engine.rank == 0:
            files.append(_write_tensors(buffers, path, BUFFERS_FILE))
            storage.write_json(storage.join(path, STATE_FILE), state)
            files.append(_file_entry(path, STATE_FILE))
        return files

    def _commit(self, path: str, step: int, parts: list[Any]) -> None:
        entries = sorted((entry for part in parts for entry in part), key=lambda entry: str(entry["path"]))
        storage.write_json(storage.join(path, COMMIT_FILE), {"format": FORMAT, "step": step, "files": entries})
        _prune_checkpoints(self.folder, self.config.keep_last, self.config.keep_every)

    def _run_on_all_ranks(self, action: Any) -> list[Any]:
        """Runs ``action`` and returns the results of all ranks; if it failed on one, every rank raises its error."""
        try:
            mine: tuple[Any, str | None] = (action(), None)
        except Exception as error:
            mine = (None, f"rank {self.engine.rank}: {type(error).__name__}: {error}")
        everyone: list[Any] = [mine]
        if self.group is not None:
            everyone = [None] * self.engine.world
            dist.all_gather_object(everyone, mine, group=self.group)
        if failures := [problem for _, problem in everyone if problem]:
            raise RuntimeError(f"checkpoint below {self.folder} could not be written: {failures[0]}")
        return [value for value, _ in everyone]


def load_checkpoint(engine: Engine, path: str, identity: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Loads a whole checkpoint into the engine; returns its step and the loop's state.

    Raises UserError, naming the first difference, if it has another format, config or model.
    """
    state = storage.read_json(storage.join(path, STATE_FILE))
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {state.get('format')!r}, this imagen-ray reads {FORMAT}")
    _check_equal(path, "config", state["identity"], json.loads(json.dumps(dict(identity))))
    _check_equal(path, "model", state["model"], _parameter_shapes(engine))
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for rank in range(state["world"]):
            local = stack.enter_context(storage.local_copy(storage.join(path, rank_file(rank))))
            file = stack.enter_context(safe_open(local, framework="pt"))
            where |= dict.fromkeys(file.keys(), file)
        for name in engine.params:
            keys = {slot: f"{name}{SEPARATOR}{slot}" for slot in engine.slots(name)}
            engine.load_parameter(name, {slot: where[key].get_tensor(key) for slot, key in keys.items()})
    engine.set_updates(state["updates"])
    engine.load_buffers(_read_tensors(path, BUFFERS_FILE))
    return int(state["step"]), state["loop"]


def read_weights(folder: str, kind: str) -> tuple[dict[str, Tensor], int]:
    """Returns the state dict, float32, of the newest whole checkpoint below ``folder``, and its number of updates.

    ``kind`` is a key of `WEIGHT_SLOTS`. Raises UserError if no checkpoint is left.
    """
    path = find_newest(folder)
    if path is None:
        raise UserError(f"{folder}: no whole checkpoint is left to read {kind} weights from; train again to have one")
    state, found = storage.read_json(storage.join(path, STATE_FILE)), dict[str, Tensor]()
    ending = SEPARATOR + WEIGHT_SLOTS[kind]
    with ExitStack() as stack:
        for rank in range(state["world"]):
            local = stack.enter_context(storage.local_copy(storage.join(path, rank_file(rank))))
            file = stack.enter_context(safe_open(local, framework="pt"))
            found |= {key.removesuffix(ending): file.get_tensor(key) for key in file.keys() if key.endswith(ending)}  # noqa: SIM118
        found |= load_file(stack.enter_context(storage.local_copy(storage.join(path, BUFFERS_FILE))))
    return found, int(state["updates"])


def _parameter_shapes(engine: Engine) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in engine.shapes.items()}


def _check_equal(path: str, what: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    absent = "(none)"
    for key in [*wanted, *(key for key in saved if key not in wanted)]:
        if saved.get(key, absent) != wanted.get(key, absent):
            raise UserError(
                f"{path}: a checkpoint of another {what}: {key} was {saved.get(key, absent)}, now it is "
                f"{wanted.get(key, absent)}; set it back, or train into an empty folder"
            )


def find_newest(folder: str) -> str | None:
    """Returns the newest whole checkpoint below ``folder``, or None; logs newer torn ones."""
    for _, path in _list_steps(folder):
        problem = find_damage(path)
        if problem is None:
            return path
        log.warning("checkpoint %s is torn (%s): skipped", path, problem)
    return None


def find_damage(path: str) -> str | None:
    """Returns why the checkpoint at ``path`` is torn, or None if it is whole."""
    marker = storage.join(path, COMMIT_FILE)
    if not storage.exists(marker):
        return f"no {COMMIT_FILE}"
    try:
        files = {entry["path"]: (entry["sha256"], entry["bytes"]) for entry in storage.read_json(marker)["files"]}
    except (ValueError, KeyError, TypeError):
        return f"{COMMIT_FILE} is not readable"
    for name in {STATE_FILE: None, BUFFERS_FILE: None, rank_file(0): None} | files:
        file = storage.join(path, name)
        if not storage.exists(file):
            return f"{name} is missing"
        if storage.sha256_file(file) != files.get(name):
            return f"{name} does not match its hash"
    return None


def find_newest_on_all_ranks(folder: str) -> str | None:
    """Returns `find_newest` of rank 0 on every rank, so that all resume from the same checkpoint."""
    found: list[Any] = [find_newest(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    path: str | None = found[0]
    return path


def checkpoint_path(folder: str, step: int) -> str:
    """Returns the path of the checkpoint of ``step``."""
    return storage.join(folder, f"step-{step:08d}")


def rank_file(rank: int) -> str:
    """Returns the name of the file with a rank's share."""
    return f"rank-{rank:05d}.safetensors"


def _list_steps(folder: str) -> list[tuple[int, str]]:
    """Returns (step, path) of every checkpoint folder, whole or torn, newest first."""
    if not storage.exists(folder):
        return []
    names = {name.split("/")[0] for name in storage.list_files(folder)}
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    return [(step, checkpoint_path(folder, step)) for step in sorted(steps, reverse=True)]


def _prune_checkpoints(folder: str, keep_last: int, keep_every: int) -> None:
    """Deletes all but the newest ``keep_last`` committed checkpoints and every n-th; torn ones too."""
    steps = _list_steps(folder)
    committed = [(step, path) for step, path in steps if storage.exists(storage.join(path, COMMIT_FILE))]
    kept = {path for _, path in committed[:keep_last]}
    kept |= {path for step, path in committed if keep_every and step % keep_every == 0}
    for _, path in steps:
        if path not in kept:
            storage.remove(storage.join(path, COMMIT_FILE))  # first, so that a partial deletion is torn
            storage.remove(path)


def _write_tensors(tensors: dict[str, Tensor], path: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        local = Path(scratch) / name
        save_file(tensors, local)
        entry = _file_entry(scratch, name)  # hash what should be written, not what the storage stored
        storage.publish(local, storage.join(path, name))
    return entry


def _file_entry(path: str, name: str) -> dict[str, Any]:
    digest, size = storage.sha256_file(storage.join(path, name))
    return {"path": name, "bytes": size, "sha256": digest}


def _read_tensors(path: str, name: str) -> dict[str, Tensor]:
    with storage.local_copy(storage.join(path, name)) as local:
        return load_file(local)
