"""Reads checkpoints: finds the newest whole one, and loads it at any number of ranks.

The ranks share the reading. Each file is read by one of them, which compares its hash; where the storage is remote,
that is one download, to a temporary folder. Then each parameter is sent by the rank that has it to all others, which
keep what their ZeRO stage gives them. So the group reads every byte from remote storage once, however many ranks and
nodes it has, and no rank waits for another to hash all of it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.checkpoint_files import (
    BUFFERS_FILE,
    COMMIT_FILE,
    COMPANIONS_FILE,
    FORMAT,
    SEPARATOR,
    STATE_FILE,
    list_steps,
    rank_file,
)
from train.engine import MASTER, Engine
from train.optimizers import EMA
from train.task import Companion

WEIGHT_SLOTS = {"ema": EMA, "raw": MASTER}  # kinds of weights that `read_weights` returns
FILES_AT_ONCE = 4  # that a rank downloads and hashes
WHOLE_FILES = (STATE_FILE, BUFFERS_FILE, COMPANIONS_FILE)  # which one rank writes
FILE_NAME = re.compile(rf"{'|'.join(map(re.escape, WHOLE_FILES))}|rank-\d{{5,}}\.safetensors")
log = logging.getLogger(__name__)


class _Ranks:
    """The ranks that read together: those of the default process group, or this process alone."""

    def __init__(self, together: bool) -> None:
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def from_first(self, value: Any) -> Any:
        """Returns rank 0's ``value`` on every rank."""
        return self.from_rank(0, value)

    def from_rank(self, rank: int, value: Any) -> Any:
        """Returns the ``value`` of a rank on every rank."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=rank)
        return values[0]

    def merge(self, mine: dict[str, Any]) -> dict[str, Any]:
        """Returns the entries of the dicts of all ranks."""
        if self.world == 1:
            return mine
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine)
        return {key: value for part in everyone for key, value in part.items()}

    def send(self, owner: int, mine: Tensor | None, shape: Sequence[int], device: torch.device) -> Tensor:
        """Returns a float32 tensor of ``owner``, where it is ``mine``, on the device of every rank."""
        tensor = torch.empty(list(shape), device=device) if mine is None else mine.to(device)
        if self.world > 1:
            dist.broadcast(tensor, src=owner)
        return tensor


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, open for reading.

    ``owners`` says which rank has which file; ``local`` are local paths of the files that this rank has.
    """

    path: str
    ranks: _Ranks
    owners: dict[str, int]
    local: dict[str, str]
    state: dict[str, Any]

    def owner(self, index: int) -> tuple[str, int]:
        """Returns the file that holds the parameter of this number, and the rank that has the file."""
        name = rank_file(index % self.state["world"])
        return name, self.owners[name]


@contextmanager
def open_newest(folder: str, together: bool = True) -> Iterator[Checkpoint | None]:
    """Yields the newest whole checkpoint below ``folder``, or None; logs newer torn ones.

    A collective of the default process group; with ``together`` false, for this process alone. Temporary copies are
    deleted at the end.
    """
    ranks = _Ranks(together)
    steps = ranks.from_first(list_steps(folder) if ranks.rank == 0 else None)
    for _, path in steps:
        with _open_checkpoint(path, ranks) as (found, problem):
            if found is not None:
                yield found
                return
        if ranks.rank == 0:
            log.warning("checkpoint %s is torn (%s): skipped", path, problem)
    yield None


def find_newest(folder: str) -> str | None:
    """Returns the path of the newest whole checkpoint below ``folder``, or None; logs newer torn ones."""
    with open_newest(folder, together=False) as found:
        return found.path if found is not None else None


def find_damage(path: str) -> str | None:
    """Returns why the checkpoint at ``path`` is torn, or None if it is whole."""
    with _open_checkpoint(path, _Ranks(False)) as (_, problem):
        return problem


@contextmanager
def _open_checkpoint(path: str, ranks: _Ranks) -> Iterator[tuple[Checkpoint | None, str | None]]:
    """Yields a whole checkpoint, or None and why it is torn. A collective."""
    files, problem = ranks.from_first(_read_marker(path) if ranks.rank == 0 else None)
    if problem is not None:
        yield None, problem
        return
    # The largest first, so that the ranks get about as much each.
    owners = {
        name: at % ranks.world for at, name in enumerate(sorted(files, key=lambda n: (-(files[n] or ("", 0))[1], n)))
    }
    with ExitStack() as stack:
        scratch = (
            "" if storage.is_local(path) else stack.enter_context(tempfile.TemporaryDirectory(prefix="imagen-ray-"))
        )
        own = [name for name, rank in owners.items() if rank == ranks.rank]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            checks = list(pool.map(lambda name: _check_file(path, name, files[name], scratch), own))
        checked = ranks.merge({check.name: check for check in checks})
        if errors := [check.error for check in checked.values() if check.error]:
            raise OSError(f"{path}: {errors[0]}")
        if damaged := [checked[name].damage for name in files if checked[name].damage]:
            yield None, damaged[0]
            return
        local = {check.name: check.local for check in checks}
        state = storage.read_json(local[STATE_FILE]) if STATE_FILE in local else None
        state = ranks.from_rank(owners[STATE_FILE], state)
        if missing := [name for name in map(rank_file, range(state["world"])) if name not in files]:
            yield None, f"{COMMIT_FILE} does not name {missing[0]}"
            return
        yield Checkpoint(path, ranks, owners, local, state), None


def _read_marker(path: str) -> tuple[dict[str, tuple[str, int] | None], str | None]:
    """Returns sha256 and bytes of every file (None where the marker lacks it), or why the marker is unreadable."""
    data = storage.read_or_none(storage.join(path, COMMIT_FILE))
    if data is None:
        return {}, f"no {COMMIT_FILE}"
    try:
        files = {str(entry["path"]): (entry["sha256"], int(entry["bytes"])) for entry in json.loads(data)["files"]}
    except (ValueError, KeyError, TypeError):
        return {}, f"{COMMIT_FILE} is not readable"
    if foreign := [name for name in files if not FILE_NAME.fullmatch(name)]:  # might lead out of the folder
        return {}, f"{COMMIT_FILE} names {foreign[0]!r}, which is no file of a checkpoint"
    return {STATE_FILE: None, BUFFERS_FILE: None, rank_file(0): None} | files, None


class _CheckedFile(NamedTuple):
    """A file of a checkpoint, which a rank has read."""

    name: str
    local: str  # where it has it
    damage: str | None = None  # why the checkpoint is torn
    error: str | None = None  # why that could not be told


def _check_file(path: str, name: str, entry: tuple[str, int] | None, scratch: str) -> _CheckedFile:
    """Compares a file with its ``entry`` in the marker; downloads it to ``scratch``, unless that is empty."""
    local = storage.join(path, name)
    try:
        if scratch:
            fs, inner = storage.filesystem(local)
            local = os.path.join(scratch, name)
            fs.get_file(inner, local)
        digest = storage.sha256_file(local)
    except FileNotFoundError:
        return _CheckedFile(name, local, f"{name} is missing")
    except OSError as error:
        return _CheckedFile(name, local, error=f"{name} cannot be read ({type(error).__name__}: {error})")
    return _CheckedFile(name, local, None if digest == entry else f"{name} does not match its hash")


def load_checkpoint(engine: Engine, found: Checkpoint, identity: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Loads a checkpoint into the engine; returns its step and the loop's state. A collective.

    Raises UserError, naming the first difference, if it has another format, config or model.
    """
    path, state = found.path, found.state
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {state.get('format')!r}, this imagen-ray reads {FORMAT}")
    _check_equal(path, "config", state["identity"], json.loads(json.dumps(dict(identity))))
    _check_equal(path, "model", state["model"], {name: list(shape) for name, shape in engine.shapes.items()})
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(safe_open(local, framework="pt"))
            for name, local in found.local.items()
            if name not in WHOLE_FILES
        }
        sizes = {key: file.get_slice(key).get_shape() for file in opened.values() for key in file.keys()}  # noqa: SIM118
        shapes = found.ranks.merge(sizes)
        numbers = {name: number for number, name in enumerate(state["model"])}
        for name in engine.params:
            file, owner = found.owner(numbers[name])
            slots = {}
            for slot in engine.slots(name):
                key = f"{name}{SEPARATOR}{slot}"
                mine = opened[file].get_tensor(key) if file in opened else None
                slots[slot] = found.ranks.send(owner, mine, shapes[key], engine.device)
            engine.load_parameter(name, slots)
    engine.set_updates(state["updates"])
    buffers = load_file(found.local[BUFFERS_FILE]) if BUFFERS_FILE in found.local else None
    engine.load_buffers(found.ranks.from_rank(found.owners[BUFFERS_FILE], buffers))
    return int(state["step"]), state["loop"]


def load_companions(found: Checkpoint, companions: Mapping[str, Companion]) -> None:
    """Loads what a task trained beside its model. A collective; the checkpoint is of the same task."""
    if not companions:
        return
    stored = load_file(found.local[COMPANIONS_FILE]) if COMPANIONS_FILE in found.local else None
    stored = found.ranks.from_rank(found.owners[COMPANIONS_FILE], stored)
    for name, companion in companions.items():
        start = f"{name}{SEPARATOR}"
        companion.load_state({key.removeprefix(start): stored[key] for key in stored if key.startswith(start)})


def read_weights(folder: str, kind: str) -> tuple[dict[str, Tensor], int]:
    """Returns the state dict, float32, of the newest whole checkpoint below ``folder``, and its number of updates.

    ``kind`` is a key of `WEIGHT_SLOTS`. Raises UserError if no checkpoint is left.
    """
    with open_newest(folder, together=False) as checkpoint:
        if checkpoint is None:
            raise UserError(
                f"{folder}: no whole checkpoint is left to read {kind} weights from; train again to have one"
            )
        return _read_kind(checkpoint, kind)


def read_weights_at(path: str, kind: str) -> tuple[dict[str, Tensor], int]:
    """As `read_weights`, of the checkpoint at ``path``; raises UserError for one that is torn."""
    with _open_checkpoint(path, _Ranks(False)) as (checkpoint, problem):
        if checkpoint is None:
            raise UserError(f"{path}: the checkpoint is torn ({problem}); name another one")
        return _read_kind(checkpoint, kind)


def _read_kind(checkpoint: Checkpoint, kind: str) -> tuple[dict[str, Tensor], int]:
    found, ending = load_file(checkpoint.local[BUFFERS_FILE]), SEPARATOR + WEIGHT_SLOTS[kind]
    for rank in range(checkpoint.state["world"]):
        with safe_open(checkpoint.local[rank_file(rank)], framework="pt") as file:
            names = [key for key in file.keys() if key.endswith(ending)]  # noqa: SIM118
            found |= {key.removesuffix(ending): file.get_tensor(key) for key in names}
    return found, int(checkpoint.state["updates"])


def _check_equal(path: str, what: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    absent = "(none)"
    for key in [*wanted, *(key for key in saved if key not in wanted)]:
        if saved.get(key, absent) != wanted.get(key, absent):
            raise UserError(
                f"{path}: a checkpoint of another {what}: {key} was {saved.get(key, absent)}, now it is "
                f"{wanted.get(key, absent)}; set it back, or train into an empty folder"
            )
