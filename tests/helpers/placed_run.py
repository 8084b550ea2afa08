"""Trains the toy on a Ray cluster of one node with pretended GPUs: ``python -m tests.helpers.placed_run FOLDER GPUS``.

Every rank writes where it is to FOLDER/places.jsonl. Then runs the smoke config until its first training, and with 8
ranks; prints the ranks of the first, and the exit status and the last line of the second.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dataprep.io.storage import read_json_lines
from pipeline.runtime.config import ClusterConfig, StageResources
from pipeline.runtime.group_size import plan_group
from pipeline.runtime.ray_session import connect_ray
from pipeline.runtime.training import run_training
from tests.helpers.paths import ROOT
from tests.helpers.toys import ToyData, ToyTask, config
from train.loop import train

ASKED = 8  # ranks of the command


def write_place(folder: str) -> None:
    """Writes where this rank is: node, the GPUs that it sees, and which of them is its own."""
    import ray

    env = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "NODE_RANK")}
    place = {"rank": dist.get_rank(), "world": dist.get_world_size(), "node": ray.get_runtime_context().get_node_id()}
    with open(f"{folder}/places.jsonl", "a") as file:
        file.write(json.dumps(place | env) + "\n")


def read_groups(folder: Path) -> list[list[dict[str, Any]]]:
    """Returns the places of each group, by rank; prints them, with nodes numbered as they appear."""
    places = read_json_lines(str(folder / "places.jsonl"))
    groups: list[list[dict[str, Any]]] = []
    while places:
        groups.append(sorted(places[: places[0]["world"]], key=lambda place: int(place["rank"])))
        places = places[places[0]["world"] :]
    numbers: dict[str, int] = {}
    for group in groups:
        print(f"group of {len(group)}:")
        for place in group:
            place["id"], place["node"] = place["node"], numbers.setdefault(place["node"], len(numbers))
            seen, local = place["CUDA_VISIBLE_DEVICES"], place["LOCAL_RANK"]
            print(f"  rank {place['rank']}: node {place['node']}, sees GPUs {seen}, its own is number {local} of them")
    return groups


@contextmanager
def start_cluster(nodes: int, **resources: int) -> Iterator[Any]:
    """Yields a cluster of a head without CPUs and that many nodes, with this process connected to it."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(**resources)
    connect_ray(ClusterConfig(address=cluster.address))
    yield cluster
    ray.shutdown()  # before its node: a driver whose node ended exits with status 1
    cluster.shutdown()


def run_rank(folder: str) -> dict[str, Any]:
    """Trains one rank."""
    write_place(folder)
    return train(ToyTask(), config(steps=3), ToyData(), f"{folder}/run", 0)


def main() -> None:
    """Runs the driver."""
    folder, gpus = sys.argv[1], int(sys.argv[2])
    with start_cluster(1, num_cpus=4, num_gpus=gpus) as cluster:
        here = importlib.import_module("tests.helpers.placed_run")  # functions of __main__ would be pickled by value
        plan = plan_group(StageResources(), None, config())
        result = run_training(here.run_rank, {"folder": folder}, f"{folder}/run", plan, 3, "toy", 0)
        words = [sys.executable, "-m", "pipeline", "run", f"{ROOT}/configs/smoke.yaml", f"run={folder}/smoke"]
        words += [f"cluster.address={cluster.address}"]
        subprocess.run([*words, "--until", "encoder"], check=True, stdout=sys.stderr)  # with the default of ranks
        (manifest,) = Path(folder, "smoke/stages/encoder").glob("*/manifest.json")
        ranks = json.loads(manifest.read_text())["counters"]["ranks"]
        words += [f"train.{name}.batch_size={ASKED}" for name in ("sr32", "sr64")]  # else 8 ranks do not divide it
        done = subprocess.run([*words, f"cluster.ranks={ASKED}"], capture_output=True, text=True, check=False)
        last = done.stderr.strip().splitlines()[-1]
        print(json.dumps({"step": result["step"], "ranks": ranks, "status": done.returncode, "line": last}))


if __name__ == "__main__":
    main()
