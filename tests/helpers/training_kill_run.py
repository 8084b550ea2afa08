"""Trains the toy on Ray with planned kills: ``python -m tests.helpers.training_kill_run FOLDER STEPS PLAN STOP``.

Starts a driver with a local Ray and two ranks. PLAN is that of `kill_group`: a list of [point, victim, step]. At step
STOP (-1: never) the driver receives SIGTERM, once, and the ranks wait for the shutdown. The caller restarts the driver.
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

from dataprep.io import storage
from dataprep.io.signals import SHUTDOWN
from pipeline.runtime.config import ClusterConfig, StageResources
from pipeline.runtime.group_size import plan_group
from pipeline.runtime.ray_session import connect_ray
from pipeline.runtime.training import TrainingStopped, run_training
from tests.helpers.kill_group import KilledData, KilledTask, Killer, arm
from tests.helpers.toys import ToyData, config
from train.loop import train

EVERY = 4  # steps between checkpoints


class StoppedTask(KilledTask):
    """Sends SIGTERM to the driver at step ``stop``."""

    def __init__(self, killer: Killer, log: Path, stop: int, driver: int) -> None:
        super().__init__(killer, log)
        self.stop, self.driver, self.sent = stop, driver, log.parent / "sent"

    def loss(self, model: Any, batch: Any, random: Any) -> Any:
        if 0 <= self.stop == random.step and not (self.sent / str(dist.get_rank())).exists():
            self.sent.mkdir(exist_ok=True)
            (self.sent / str(dist.get_rank())).touch()
            if dist.get_rank() == 0:
                os.kill(self.driver, signal.SIGTERM)
            assert SHUTDOWN.wait(300), "no shutdown arrived"
        return super().loss(model, batch, random)


def run_rank(folder: str, steps: int, plan: list[list[Any]], stop: int, driver: int) -> dict[str, Any]:
    """Trains one rank of the toy, with its kills."""
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
    """Runs the driver; exit status 0 when training is done, 3 when it was stopped by SIGTERM."""
    folder, steps, plan, stop = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    connect_ray(ClusterConfig(cpus=2))
    arguments = {"folder": folder, "steps": steps, "plan": plan, "stop": stop, "driver": os.getpid()}
    here = importlib.import_module("tests.helpers.training_kill_run")  # classes of __main__ would be pickled by value
    plan = plan_group(StageResources(), 2, config())
    try:
        result = run_training(here.run_rank, arguments, f"{folder}/run", plan, steps, "toy", retries=2)
    except TrainingStopped as stopped:
        print(stopped)
        sys.exit(3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
