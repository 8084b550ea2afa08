"""Trains the toy on a Ray cluster with pretended GPUs, which loses a node and gets it back.

``python -m tests.helpers.elastic_run FOLDER STEPS``. Four nodes of one GPU each; the node of a rank is taken away at
step 8 and added again at step 20. Prints the sizes of the groups.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dataprep.io.storage import read_json_lines
from pipeline.runtime import training
from pipeline.runtime.config import ClusterConfig, StageResources
from pipeline.runtime.group_size import plan_group
from pipeline.runtime.rank_group import RankGroup
from pipeline.runtime.ray_session import connect_ray
from pipeline.runtime.training import run_training
from tests.helpers.toys import ToyData, ToyTask, config
from train.loop import train

SETTINGS = {"checkpoint_every": 4, "log_every": 1, "zero_stage": 1, "overlap_save": 0}
LOST_AT, BACK_AT = 8, 20


class SlowTask(ToyTask):
    """Takes long enough a step for a node to go and to come."""

    def loss(self, model: Any, batch: Any, random: Any) -> Any:
        time.sleep(0.15)
        return super().loss(model, batch, random)


def run_rank(folder: str, steps: int) -> dict[str, Any]:
    """Trains one rank."""
    if dist.get_rank() == 0:
        with open(f"{folder}/groups.jsonl", "a") as file:
            file.write(json.dumps({"ranks": dist.get_world_size()}) + "\n")
    return train(SlowTask(), config(steps=steps, **SETTINGS), ToyData(), f"{folder}/run", 0, ToyData(seed=5))


def last_step(folder: str) -> int:
    """Returns the last logged step."""
    path = Path(folder) / "run/log.jsonl"
    return max((row["step"] for row in read_json_lines(str(path))), default=0) if path.exists() else 0


def main() -> None:
    """Runs the driver."""
    folder, steps = sys.argv[1], int(sys.argv[2])
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(4)]
    connect_ray(ClusterConfig(address=cluster.address))
    training.GROW_INTERVAL = 1.0
    plan = plan_group(StageResources(), None, config())
    locations: list[set[str]] = []

    class RecordedGroup(RankGroup):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            locations.append(self.nodes())

    vars(training)["RankGroup"] = RecordedGroup

    returned: list[subprocess.Popen[bytes]] = []

    def lose_and_return() -> None:
        while last_step(folder) < LOST_AT:
            time.sleep(0.1)
        cluster.remove_node(nodes[-1], allow_graceful=False)
        while last_step(folder) < BACK_AT:
            time.sleep(0.1)
        # `add_node` sets signal handlers, which only the main thread may.
        words = ["start", f"--address={cluster.address}", "--num-cpus=1", "--num-gpus=1", "--block"]
        returned.append(subprocess.Popen([f"{Path(sys.executable).parent}/ray", *words], stdout=subprocess.DEVNULL))

    threading.Thread(target=lose_and_return, daemon=True).start()
    from importlib import import_module

    here = import_module("tests.helpers.elastic_run")  # classes of __main__ would be pickled by value
    arguments = {"folder": folder, "steps": steps}
    result = run_training(here.run_rank, arguments, f"{folder}/run", plan, steps, "toy", 2, regroup_seconds=5)
    for node in returned:
        node.terminate()
    print(json.dumps({"step": result["step"], "gpus": plan.need.gpus, "nodes": [len(group) for group in locations]}))


if __name__ == "__main__":
    main()
