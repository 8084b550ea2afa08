"""Checkpoints: every rank writes its share, then one marker with hashes says that it is whole.

``folder/step-00000100/`` holds ``rank-00000.safetensors`` (the parameters i with i % world == rank, each with its fp32
weight and optimizer slots, whole), ``buffers.safetensors``, ``state.json``, and last ``commit.json`` with the size and
sha256 of every file. Without a marker, or where a file does not match it, a checkpoint is torn: it is named and passed
over. Keyed by parameter, a checkpoint is read at any world size and ZeRO stage. ``folder`` is any fsspec URL; nothing
in it is executed when it is read.
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

from dataprep import storage
from dataprep.schema import UserError
from train.config import TrainConfig
from train.engine import Engine

FORMAT, COMMIT_FILE, STATE_FILE, BUFFERS_FILE = 2, "commit.json", "state.json", "buffers.safetensors"
SEPARATOR = "|"  # between a parameter's name and the slot; neither holds one
log = logging.getLogger(__name__)


class Saver:
    """Writes checkpoints of an engine, one at a time, while training goes on by at most ``overlap_save`` updates.

    `save` copies this rank's share into host memory, which is collective; the files, their hashes and the marker are
    then written by a thread that talks to the other ranks' over a group of its own. ``identity`` is stored, and
    compared by `load`. Every rank calls every method alike.
    """

    def __init__(self, engine: Engine, folder: str, config: TrainConfig, identity: Mapping[str, Any]) -> None:
        self.engine, self.folder, self.config, self.identity = engine, folder, config, dict(identity)
        timeout = timedelta(seconds=config.hang_seconds)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if engine.world > 1 else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[tuple[str, int]] | None = None
        self.begun = 0  # step of the newest checkpoint, finished or not

    def save(self, step: int, loop_state: dict[str, Any]) -> None:
        """Begins the checkpoint of ``step``, once the one before it is whole; without overlap it ends it too."""
        assert self.writing is None, "collect the checkpoint before with wait()"
        engine, share = self.engine, dict[str, Tensor]()
        for index, (name, slots) in enumerate(engine.full_state()):
            if index % engine.world == engine.rank:
                share |= {f"{name}{SEPARATOR}{slot}": value.contiguous() for slot, value in slots.items()}
        buffers = engine.buffers()
        state: dict[str, Any] = {"format": FORMAT, "step": step, "updates": engine.updates(), "world": engine.world}
        state |= {"identity": self.identity, "model": _shapes(engine), "loop": loop_state}
        self.writing, self.begun = self.pool.submit(self._write, step, share, buffers, state), step

    def due(self, step: int) -> bool:
        """Whether a checkpoint under way is to be collected: written on this rank, or ``step`` is too far beyond it.

        A failure between two checkpoints therefore repeats at most ``checkpoint_every + overlap_save`` updates.
        """
        if self.writing is None:
            return False
        return self.writing.done() or step - self.begun >= self.config.overlap_save

    def wait(self) -> tuple[str, int] | None:
        """Path and step of the checkpoint that was under way, now whole; None where there was none.

        Raises RuntimeError on every rank where one could not write its part.
        """
        writing, self.writing = self.writing, None
        return writing.result() if writing is not None else None

    def close(self) -> None:
        """Ends the thread; what was under way is finished first."""
        self.pool.shutdown()

    def _write(
        self, step: int, share: dict[str, Tensor], buffers: dict[str, Tensor], state: dict[str, Any]
    ) -> tuple[str, int]:
        path = checkpoint_path(self.folder, step)
        rank = self.engine.rank
        self._all(lambda: storage.remove(path) if rank == 0 else None)  # a torn one of an earlier attempt
        parts = self._all(lambda: self._write_share(path, share, buffers, state))
        self._all(lambda: self._commit(path, step, parts) if rank == 0 else None)
        return path, step

    def _write_share(
        self, path: str, share: dict[str, Tensor], buffers: dict[str, Tensor], state: dict[str, Any]
    ) -> list[dict[str, Any]]:
        files = [_write(share, path, rank_file(self.engine.rank))]
        if self.engine.rank == 0:
            files.append(_write(buffers, path, BUFFERS_FILE))
            storage.write_json(storage.join(path, STATE_FILE), state)
            files.append(_entry(path, STATE_FILE))
        return files

    def _commit(self, path: str, step: int, parts: list[Any]) -> None:
        entries = sorted((entry for part in parts for entry in part), key=lambda entry: str(entry["path"]))
        storage.write_json(storage.join(path, COMMIT_FILE), {"format": FORMAT, "step": step, "files": entries})
        _prune(self.folder, self.config.keep_last, self.config.keep_every)

    def _all(self, action: Any) -> list[Any]:
        """What ``action`` gave on each rank; where it failed on one, every rank raises that."""
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


def load(engine: Engine, path: str, identity: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Reads a whole checkpoint into the engine; gives its step and the loop's state.

    Raises UserError, naming the first difference, where it is of another format, config or model.
    """
    state = storage.read_json(storage.join(path, STATE_FILE))
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {state.get('format')!r}, this imagen-ray reads {FORMAT}")
    _refuse(path, "config", state["identity"], json.loads(json.dumps(dict(identity))))
    _refuse(path, "model", state["model"], _shapes(engine))
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
    engine.load_buffers(_read(path, BUFFERS_FILE))
    return int(state["step"]), state["loop"]


def _shapes(engine: Engine) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in engine.shapes.items()}


def _refuse(path: str, what: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    absent = "(none)"
    for key in [*wanted, *(key for key in saved if key not in wanted)]:
        if saved.get(key, absent) != wanted.get(key, absent):
            raise UserError(
                f"{path}: a checkpoint of another {what}: {key} was {saved.get(key, absent)}, now it is "
                f"{wanted.get(key, absent)}; set it back, or train into an empty folder"
            )


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


def newest_on_all_ranks(folder: str) -> str | None:
    """`newest` as rank 0 sees it, told to every rank, so that all resume from the same one."""
    found: list[Any] = [newest(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    path: str | None = found[0]
    return path


def checkpoint_path(folder: str, step: int) -> str:
    """Where the checkpoint of ``step`` is."""
    return storage.join(folder, f"step-{step:08d}")


def rank_file(rank: int) -> str:
    """The file with a rank's share."""
    return f"rank-{rank:05d}.safetensors"


def _steps(folder: str) -> list[tuple[int, str]]:
    """(step, path) of every checkpoint folder, whole or torn, the newest first."""
    if not storage.exists(folder):
        return []
    names = {name.split("/")[0] for name in storage.list_files(folder)}
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    return [(step, checkpoint_path(folder, step)) for step in sorted(steps, reverse=True)]


def _prune(folder: str, keep_last: int, keep_every: int) -> None:
    """Deletes all but the newest ``keep_last`` committed checkpoints and every n-th; torn ones go too."""
    steps = _steps(folder)
    committed = [(step, path) for step, path in steps if storage.exists(storage.join(path, COMMIT_FILE))]
    kept = {path for _, path in committed[:keep_last]}
    kept |= {path for step, path in committed if keep_every and step % keep_every == 0}
    for _, path in steps:
        if path not in kept:
            storage.remove(storage.join(path, COMMIT_FILE))  # first, so that half a deletion is no checkpoint
            storage.remove(path)


def _write(tensors: dict[str, Tensor], path: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        local = Path(scratch) / name
        save_file(tensors, local)
        entry = _entry(scratch, name)  # of what was to be written, not of what the storage made of it
        storage.publish(local, storage.join(path, name))
    return entry


def _entry(path: str, name: str) -> dict[str, Any]:
    digest, size = storage.sha256_file(storage.join(path, name))
    return {"path": name, "bytes": size, "sha256": digest}


def _read(path: str, name: str) -> dict[str, Tensor]:
    with storage.local_copy(storage.join(path, name)) as local:
        return load_file(local)
