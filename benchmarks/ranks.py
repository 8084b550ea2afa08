"""Ranks of a gloo group on this machine, forked from a process that has imported what they need: quick to start."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# What a rank imports on first use.
IMPORTS = ("deepspeed", "deepspeed.runtime.zero.stage3", "torch.utils.tensorboard", "torch._dynamo")


def warm_up() -> None:
    """Imports what a rank would, before there are ranks."""
    torch.set_num_threads(1)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in IMPORTS:
        importlib.import_module(name)


def start(function: Callable[..., None], world: int, *arguments: Any) -> mp.ProcessContext:
    """Begins ``function(rank, world, *arguments)`` on every rank of a group of its own; `join` waits for its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    everything = (function, world, port, arguments)
    return mp.start_processes(_rank, everything, nprocs=world, join=False, start_method="fork")


def join(group: mp.ProcessContext) -> None:
    """Waits for a group; raises what a rank of it raised."""
    while not group.join():
        pass


def _rank(rank: int, function: Callable[..., None], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    function(rank, world, *arguments)
    dist.destroy_process_group()
