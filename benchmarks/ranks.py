"""Starts the ranks of a gloo group on this machine, forked from a process that has already imported what they need."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Modules that a rank imports on first use.
IMPORTS = ("deepspeed", "deepspeed.runtime.zero.stage3", "torch.utils.tensorboard", "torch._dynamo")


def warm_up() -> None:
    """Imports what the ranks need, before they are forked."""
    torch.set_num_threads(1)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in IMPORTS:
        importlib.import_module(name)


def start(function: Callable[..., None], world: int, *arguments: Any) -> mp.ProcessContext:
    """Starts ``function(rank, world, *arguments)`` on every rank of a new group; `join` waits for its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    everything = (function, world, port, arguments)
    return mp.start_processes(_rank, everything, nprocs=world, join=False, start_method="fork")


def join(group: mp.ProcessContext) -> None:
    """Waits for a group; raises what one of its ranks raised."""
    while not group.join():
        pass


def _rank(rank: int, function: Callable[..., None], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    function(rank, world, *arguments)
    dist.destroy_process_group()
