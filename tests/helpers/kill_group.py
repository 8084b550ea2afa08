"""Toy training on two ranks, killed on a plan: ``python -m tests.helpers.kill_group FOLDER CHANGES PLAN``.

Three layers of processes, like a cluster, a driver and its workers: the outer one restarts a killed driver; the driver
restarts its two ranks if one of them is killed; ranks die with their driver. They are forked, so that slow imports
happen once. PLAN is a JSON list of [point, victim, step]: at the first passage of ``point`` in ``step`` or later, the
victim ("rank0", "rank1" or "driver") gets SIGKILL. Each kill is recorded before it happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataprep.io import storage
from tests.helpers.toys import ToyData, ToyTask, config, run
from train import checkpoint, optimizers
from train.loader.loader import Batch
from train.loader.sampler import SampleRandom
from train.loop import train

POINTS = ("data", "forward", "backward", "optimizer", "in save", "before marker", "after marker")
SIGKILL_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


class Killer:
    """Kills the victims of the plan."""

    def __init__(self, folder: Path, plan: list[list[Any]], rank: int, pids: Path) -> None:
        self.plan, self.rank, self.pids, self.step = plan, rank, pids, 0
        self.done = folder / "kills"
        self.done.mkdir(exist_ok=True)

    def at(self, point: str, step: int | None = None, acting: int = 0) -> None:
        """Rank ``acting`` reaches ``point``; kills if the plan says so."""
        self.step = self.step if step is None else step
        number = len(list(self.done.iterdir()))
        if self.rank != acting or number == len(self.plan):
            return
        wanted, victim, first = self.plan[number]
        if wanted != point or self.step < first:
            return
        try:
            (self.done / f"{number:03d}").open("x").close()
        except FileExistsError:
            return
        os.kill(json.loads(self.pids.read_text())[victim], signal.SIGKILL)
        time.sleep(60)  # do nothing more until the kill takes effect


class KilledData(ToyData):
    """The toy's data; loading is a point."""

    def __init__(self, killer: Killer) -> None:
        super().__init__()
        self.killer = killer

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        self.killer.at("data", int(positions[0]) // self.global_batch)
        return super().gather(rows, positions)


class KilledTask(ToyTask):
    """The toy's task; forward and backward passes are points; records the samples of every step."""

    def __init__(self, killer: Killer, log: Path) -> None:
        self.killer, self.log = killer, log

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        if random.step >= 0:
            with open(self.log, "a") as file:
                file.write(json.dumps([random.step, random.indices]) + "\n")
        self.killer.at("forward", random.step)
        loss, metrics = super().loss(model, batch, random)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: self.killer.at("backward", random.step))
        return loss, metrics


def arm(killer: Killer) -> None:
    """Patches the optimizer's update and three moments of a save to be points."""
    step, write, mark = optimizers.AdamWEma.step, checkpoint._write_tensors, storage.write_json

    def killed_step(self: Any, closure: Any = None) -> None:
        killer.at("optimizer")
        step(self, closure)

    def killed_write(tensors: dict[str, Tensor], path: str, name: str) -> dict[str, Any]:
        if name.startswith("rank-"):
            killer.at("in save")
        return write(tensors, path, name)

    def killed_mark(path: str, value: Any) -> None:
        marks = path.endswith(checkpoint.COMMIT_FILE)
        if marks:
            killer.at("before marker")
        mark(path, value)
        if marks:
            killer.at("after marker")

    for owner, name, replacement in (
        (optimizers.AdamWEma, "step", killed_step),
        (checkpoint, "_write_tensors", killed_write),
        (storage, "write_json", killed_mark),
    ):
        setattr(owner, name, replacement)


def fork(body: Callable[[], None]) -> int:
    """Runs ``body`` in a child that dies with this process; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(SIGKILL_WITH_PARENT, signal.SIGKILL)
    status = 1
    try:
        body()
        status = 0
    except BaseException as error:
        print(f"{os.getpid()}: {type(error).__name__}: {error}"[:300], file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def rank_body(folder: Path, changes: dict[str, Any], plan: list[list[Any]], rank: int, port: int) -> None:
    """Runs one rank of one attempt."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ["LOCAL_RANK"] = str(rank)
    killer = Killer(folder, plan, rank, folder / "pids.json")
    while not (folder / "pids.json").exists():
        time.sleep(0.01)
    arm(killer)
    task = KilledTask(killer, folder / f"steps-{rank}.jsonl")
    train(task, config(**changes), KilledData(killer), str(folder / "run"), 0, ToyData(seed=5))


def driver_body(folder: Path, changes: dict[str, Any], plan: list[list[Any]]) -> None:
    """Starts the ranks until both succeed."""
    for _ in range(len(plan) + 1):
        (folder / "pids.json").unlink(missing_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [fork(partial(rank_body, folder, changes, plan, rank, port)) for rank in (0, 1)]
        storage.write_json(str(folder / "pids.json"), {"rank0": ranks[0], "rank1": ranks[1], "driver": os.getpid()})
        pid, status = os.wait()
        other = next(rank for rank in ranks if rank != pid)
        if status:
            os.kill(other, signal.SIGKILL)
        _, second = os.waitpid(other, 0)
        if status == second == 0:
            return
    raise RuntimeError("no attempts left")


def warm_up(folder: Path) -> None:
    """Imports what a run imports on first use, found by running a child, so that no other state remains."""

    def child() -> None:
        run(folder / "warm", steps=1, zero_stage=2)
        (folder / "modules.json").write_text(json.dumps(sorted(sys.modules)))

    assert os.waitpid(fork(child), 0)[1] == 0
    for name in json.loads((folder / "modules.json").read_text()):
        if name not in sys.modules and name.split(".")[0] in ("deepspeed", "torch", "tensorboard", "boto3", "botocore"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def main() -> None:
    """Runs with the plan's kills in ``FOLDER/killed``, and without in ``FOLDER/whole``."""
    folder, changes, plan = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    warm_up(folder)
    survive(folder / "killed", changes, plan)
    survive(folder / "whole", changes, [])


def survive(folder: Path, changes: dict[str, Any], plan: list[list[Any]]) -> None:
    """Starts the driver until it succeeds."""
    folder.mkdir()
    for _ in range(len(plan) + 1):
        _, status = os.waitpid(fork(lambda: driver_body(folder, changes, plan)), 0)
        if status == 0:
            return
        assert os.WIFSIGNALED(status), "the driver failed without a kill"
        time.sleep(0.2)  # until its ranks have ended
    raise RuntimeError("the plan is complete, the run is not")


if __name__ == "__main__":
    main()
