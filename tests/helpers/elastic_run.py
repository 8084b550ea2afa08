"""Trains the toy on a Ray cluster with pretended GPUs, which loses a node and gets it back.

``python -m tests.helpers.elastic_run FOLDER STEPS``. Four nodes of one GPU each; the node of a rank is taken away at
step 8 and added again at step 20. Every rank of every group writes where it is to FOLDER/places.jsonl.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

from dataprep.io.storage import read_json_lines
from pipeline.runtime import training
from pipeline.runtime.config import StageResources
from pipeline.runtime.group_size import plan_group
from pipeline.runtime.training import run_training
from tests.helpers.placed_run import start_cluster, write_place
from tests.helpers.toys import ToyData, ToyTask, config
from train.loop import train

SETTINGS = {"checkpoint_every": 4, "log_every": 1, "zero_stage": 1, "overlap_save": 0}
NODES, LOST_AT, BACK_AT = 4, 8, 20


class SlowTask(ToyTask):
    """Takes long enough a step for a node to go and to come."""

    def loss(self, model: Any, batch: Any, random: Any) -> Any:
        time.sleep(0.15)
        return super().loss(model, batch, random)


def run_rank(folder: str, steps: int) -> dict[str, Any]:
    """Trains one rank."""
    write_place(folder)
    return train(SlowTask(), config(steps=steps, **SETTINGS), ToyData(), f"{folder}/run", 0, ToyData(seed=5))


def last_step(folder: str) -> int:
    """Returns the last logged step."""
    path = Path(folder) / "run/log.jsonl"
    return max((row["step"] for row in read_json_lines(str(path))), default=0) if path.exists() else 0


def main() -> None:
    """Runs the driver."""
    folder, steps = sys.argv[1], int(sys.argv[2])
    returned: list[subprocess.Popen[bytes]] = []
    with start_cluster(NODES, num_cpus=1, num_gpus=1) as cluster:
        lost = next(node for node in cluster.worker_nodes if node.node_id != ray.get_runtime_context().get_node_id())

        def lose_and_return() -> None:
            while last_step(folder) < LOST_AT:
                time.sleep(0.1)
            Path(folder, "lost").write_text(lost.node_id)
            cluster.remove_node(lost, allow_graceful=False)
            while last_step(folder) < BACK_AT:
                time.sleep(0.1)
            # `add_node` sets signal handlers, which only the main thread may.
            words = ["start", f"--address={cluster.address}", "--num-cpus=1", "--num-gpus=1", "--block"]
            returned.append(subprocess.Popen([f"{Path(sys.executable).parent}/ray", *words], stdout=subprocess.DEVNULL))

        threading.Thread(target=lose_and_return, daemon=True).start()
        training.GROW_INTERVAL = 1.0
        plan = plan_group(StageResources(), None, config())
        here = importlib.import_module("tests.helpers.elastic_run")  # classes of __main__ would be pickled by value
        arguments = {"folder": folder, "steps": steps}
        result = run_training(here.run_rank, arguments, f"{folder}/run", plan, steps, "toy", 2, regroup_seconds=5)
        print(json.dumps({"step": result["step"], "gpus": plan.need.gpus}))
    for node in returned:
        node.terminate()
        node.wait(60)


if __name__ == "__main__":
    main()
