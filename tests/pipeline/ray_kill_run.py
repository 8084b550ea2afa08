"""The toy under Ray Train, killed or stopped on a plan; a script: ``python ray_kill_run.py FOLDER STEPS PLAN STOP``.

A driver with a Ray of its own and two ranks. PLAN is that of `kill_group`: [point, victim, step] each, in turn. At step
STOP (-1: never) the driver gets SIGTERM, once, and the ranks wait there until they are told. It is started again by
whoever started it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from kill_group import KilledData, KilledTask, Killer, arm
from train_fakes import ToyData, config

from dataprep import storage
from pipeline.cluster import connect
from pipeline.config import ClusterConfig
from pipeline.ray_train import TrainingStopped, run_training
from train import guards
from train.loop import train

EVERY = 4  # steps between checkpoints


class StoppedTask(KilledTask):
    """At its step the driver is told to leave."""

    def __init__(self, killer: Killer, log: Path, stop: int, driver: int) -> None:
        super().__init__(killer, log)
        self.stop, self.driver, self.told = stop, driver, log.parent / "told"

    def loss(self, model: Any, batch: Any, random: Any) -> Any:
        if 0 <= self.stop == random.step and not (self.told / str(dist.get_rank())).exists():
            self.told.mkdir(exist_ok=True)
            (self.told / str(dist.get_rank())).touch()
            if dist.get_rank() == 0:
                os.kill(self.driver, signal.SIGTERM)
            assert guards.STOP.wait(300), "the notice did not come"
        return super().loss(model, batch, random)


def work(folder: str, steps: int, plan: list[list[Any]], stop: int, driver: int) -> dict[str, Any]:
    """One rank: the toy with its kills."""
    here, rank = Path(folder), dist.get_rank()
    pids: list[Any] = [None, None]
    dist.all_gather_object(pids, os.getpid())
    if rank == 0:
        storage.write_json(str(here / "pids.json"), {"rank0": pids[0], "rank1": pids[1], "driver": driver})
    dist.barrier()
    killer = Killer(here, plan, rank, here / "pids.json")
    arm(killer)
    task = StoppedTask(killer, here / f"steps-{rank}.jsonl", stop, driver)
    settings = config(steps=steps, checkpoint_every=EVERY, zero_stage=2, overlap_save=0)
    return train(task, settings, KilledData(killer), str(here / "run"), 0, ToyData(seed=5))


def main() -> None:
    """The driver: exit status 0 where training is done, 3 where it was stopped on notice."""
    folder, steps, plan, stop = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    connect(ClusterConfig(cpus=2))
    arguments = {"folder": folder, "steps": steps, "plan": plan, "stop": stop, "driver": os.getpid()}
    here = importlib.import_module("ray_kill_run")  # what is in __main__ would be pickled whole
    try:
        result = run_training(here.work, arguments, f"{folder}/run", 2, steps, "toy", retries=2)
    except TrainingStopped as stopped:
        print(stopped)
        sys.exit(3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
