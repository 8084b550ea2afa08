"""Checkpoints: every rank writes its share, then rank 0 writes a marker with hashes, which commits the checkpoint.

``folder/step-00000100/`` holds ``rank-00000.safetensors`` (the parameters i with i % world == rank, each with its fp32
weight and optimizer slots, whole), ``buffers.safetensors``, for a task that trains more than its model
``companions.safetensors``, ``state.json``, and last ``commit.json`` with the size and
sha256 of every file. A checkpoint without a marker, or with a file that does not match it, is torn: it is logged and
skipped. Keyed by parameter, a checkpoint loads at any world size and ZeRO stage (`train.resume`). ``folder`` is any
fsspec URL; loading executes no code from it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from dataprep.io import storage
from train.checkpoint_files import (
    BUFFERS_FILE,
    COMMIT_FILE,
    COMPANIONS_FILE,
    FORMAT,
    SEPARATOR,
    STATE_FILE,
    checkpoint_path,
    list_steps,
    rank_file,
)
from train.config import TrainConfig
from train.engine import Engine
from train.host_copies import HostCopies
from train.task import Companion


class CheckpointSaver:
    """Writes checkpoints of an engine, one at a time, while training continues by at most ``overlap_save`` updates.

    `save` copies this rank's share to host memory, a collective; a thread then writes files, hashes and marker, and
    communicates with the other ranks' threads over its own process group. ``identity`` is stored, and compared by
    `load_checkpoint`. Every method is collective.
    """

    def __init__(
        self,
        engine: Engine,
        folder: str,
        config: TrainConfig,
        identity: Mapping[str, Any],
        companions: Mapping[str, Companion] | None = None,
    ) -> None:
        self.engine, self.folder, self.config, self.identity = engine, folder, config, dict(identity)
        self.companions = companions or {}
        timeout = timedelta(seconds=config.hang_seconds)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if engine.world > 1 else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.copies = HostCopies(engine.device)
        self.writing: Future[tuple[str, int]] | None = None
        self.begun = 0  # step of the newest checkpoint, finished or not

    def save(self, step: int, loop_state: dict[str, Any]) -> None:
        """Starts the checkpoint of ``step``; the previous one must have been collected with `wait`."""
        assert self.writing is None, "collect the previous checkpoint with wait()"
        engine, share = self.engine, dict[str, Tensor]()
        self.copies.begin()
        for name, slots in engine.full_state(engine.rank, engine.world, self.copies.copy):
            share |= {f"{name}{SEPARATOR}{slot}": value for slot, value in slots.items()}
        self.copies.finish()
        whole = {BUFFERS_FILE: engine.buffers()} if engine.rank == 0 else {}
        if engine.rank == 0 and self.companions:
            whole[COMPANIONS_FILE] = {
                f"{name}{SEPARATOR}{key}": value.detach().cpu().clone()
                for name, companion in self.companions.items()
                for key, value in companion.state().items()
            }
        state: dict[str, Any] = {"format": FORMAT, "step": step, "updates": engine.updates(), "world": engine.world}
        state |= {
            "identity": self.identity,
            "model": {name: list(shape) for name, shape in engine.shapes.items()},
            "loop": loop_state,
        }
        self.writing, self.begun = self.pool.submit(self._write, step, share, whole, state), step

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
        self, step: int, share: dict[str, Tensor], whole: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> tuple[str, int]:
        path = checkpoint_path(self.folder, step)
        rank = self.engine.rank
        self._run_on_all_ranks(lambda: storage.remove(path) if rank == 0 else None)  # a torn one of an earlier attempt
        parts = self._run_on_all_ranks(lambda: self._write_share(path, share, whole, state))
        self._run_on_all_ranks(lambda: self._commit(path, step, parts) if rank == 0 else None)
        return path, step

    def _write_share(
        self, path: str, share: dict[str, Tensor], whole: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> list[dict[str, Any]]:
        files = [_write_tensors(share, path, rank_file(self.engine.rank))]
        if self.engine.rank == 0:
            files += [_write_tensors(tensors, path, name) for name, tensors in whole.items()]
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


def _prune_checkpoints(folder: str, keep_last: int, keep_every: int) -> None:
    """Deletes all but the newest ``keep_last`` committed checkpoints and every n-th; torn ones too."""
    steps = list_steps(folder)
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
