"""The weights in a checkpoint, read without an engine: the averages, or what the last update left."""

from __future__ import annotations

from contextlib import ExitStack

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dataprep import storage
from dataprep.schema import UserError
from train.checkpoint import BUFFERS_FILE, SEPARATOR, STATE_FILE, newest, rank_file
from train.engine import MASTER
from train.optim import EMA

SLOTS = {"ema": EMA, "raw": MASTER}


def read_weights(folder: str, kind: str) -> tuple[dict[str, Tensor], int]:
    """The state dict, float32, of the newest whole checkpoint below ``folder``, and its number of updates.

    ``kind`` is a key of `SLOTS`. Raises UserError where no checkpoint is left.
    """
    path = newest(folder)
    if path is None:
        raise UserError(f"{folder}: no whole checkpoint is left to read {kind} weights from; train again to have one")
    state, found = storage.read_json(storage.join(path, STATE_FILE)), dict[str, Tensor]()
    ending = SEPARATOR + SLOTS[kind]
    with ExitStack() as stack:
        for rank in range(state["world"]):
            local = stack.enter_context(storage.local_copy(storage.join(path, rank_file(rank))))
            file = stack.enter_context(safe_open(local, framework="pt"))
            found |= {key.removesuffix(ending): file.get_tensor(key) for key in file.keys() if key.endswith(ending)}  # noqa: SIM118
        found |= load_file(stack.enter_context(storage.local_copy(storage.join(path, BUFFERS_FILE))))
    return found, int(state["updates"])
