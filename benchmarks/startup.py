"""Time from a command to its work, as a user types it.

    python -m benchmarks.startup [--demo RUN] [--turns 3]

- commands: CPU-seconds (user and system, of the process and the children that it waited for) and wall seconds of
  `--help`, `status` and `run` of a finished smoke run, and of `sample` of one prompt with the model of a finished demo
  run (``--demo``) or else of the smoke run. Median over the turns.
- submit: the same of `submit` of the finished smoke run, to a head of two CPUs on this machine that has run a job
  before: packaging, a job, and its log until it ends. CPU-seconds are those of the command alone, without the job's.
- smoke: wall seconds of `imagen-ray run configs/smoke.yaml` into an empty folder, and of each of its stages. Their work
  is what the same stage takes when it runs again in the same processes: a second run, into another folder, in the same
  driver. The difference is the stage's start-up.
- groups: wall seconds for a training group of two CPU ranks to start, sum a number over the ranks, and end: ours in new
  processes and in kept ones, and Ray Train's `TorchTrainer`, interleaved, in one driver whose Ray has started. The user
  of Ray Train would write the same function and the same two options; imports of torch are part of all but the kept.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ray_head import start_head
from benchmarks.result import make_claim, write_result
from dataprep.io.storage import read_json

SMOKE = "configs/smoke.yaml"
COMMAND = [sys.executable, "-m", "pipeline"]


def time_command(words: list[str], turns: int) -> dict[str, Any]:
    """Returns the medians of CPU and wall seconds of ``imagen-ray WORDS``."""
    cpu, wall = [], []
    for _ in range(turns):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([*COMMAND, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        wall.append(time.monotonic() - began)
    return {"cpu_s": round(statistics.median(cpu), 2), "wall_s": round(statistics.median(wall), 2)}


def time_submit(run: str, turns: int) -> dict[str, Any]:
    """Returns the medians of CPU and wall seconds of ``imagen-ray submit`` of a finished run."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with start_head(2) as address:
        words = ["submit", SMOKE, f"run={run}", "--address", address]
        time_command(words, 1)
        return time_command(words, turns)


def read_stages(run: str) -> dict[str, float]:
    """Returns the seconds of each stage of a finished run."""
    return {name: entry["seconds"] for name, entry in read_json(f"{run}/run.json")["stages"].items()}


def time_smoke(folder: Path) -> tuple[list[dict[str, Any]], float]:
    """Returns a row per stage of the smoke run, and the wall seconds of the whole command."""
    began = time.monotonic()
    subprocess.run([*COMMAND, "run", SMOKE, f"run={folder}/first"], check=True, capture_output=True)
    total = time.monotonic() - began
    twice = (
        "from imagen_ray import load_config, run\n"
        f"[run(load_config({SMOKE!r}, ['run={folder}/' + name])) for name in ('warm-up', 'again')]"
    )
    subprocess.run([sys.executable, "-c", twice], check=True, capture_output=True)
    first, again = read_stages(f"{folder}/first"), read_stages(f"{folder}/again")
    rows = [
        {"stage": name, "seconds": first[name], "work": again[name], "start_up": round(first[name] - again[name], 2)}
        for name in first
    ]
    return rows, round(total, 1)


def sum_ranks(**_: Any) -> dict[str, Any]:
    """The shortest training: one all-reduce."""
    import torch
    import torch.distributed as dist

    total = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(total)
    assert total.item() == 3
    return {}


def _sum_only() -> None:
    sum_ranks()


def _run_ours() -> None:
    from pipeline.runtime.group_size import GroupPlan
    from pipeline.runtime.resources import WorkerNeed
    from pipeline.runtime.training import run_training

    with tempfile.TemporaryDirectory() as folder:
        run_training(sum_ranks, {}, folder, GroupPlan(2, WorkerNeed(1.0), 2), 1, "group", 0)


def _run_ours_anew() -> None:
    from pipeline.runtime.warm_processes import WARM

    WARM.close()
    _run_ours()


def _run_ray_train() -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.runtime.warm_processes import WARM

    WARM.close()  # idle processes hold the two CPUs
    with tempfile.TemporaryDirectory() as folder:
        scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
        TorchTrainer(_sum_only, scaling_config=scaling, run_config=RunConfig(storage_path=folder)).fit()


def time_groups(turns: int) -> dict[str, float]:
    """Returns the median seconds of each kind of group."""
    from pipeline.runtime.config import ClusterConfig
    from pipeline.runtime.ray_session import connect_ray

    connect_ray(ClusterConfig(cpus=2))
    kinds: dict[str, Callable[[], None]] = {
        "ours, new processes": _run_ours_anew,
        "ours, kept processes": _run_ours,
        "Ray Train": _run_ray_train,
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(turns):
        for name, run in kinds.items():
            began = time.monotonic()
            run()
            seconds[name].append(time.monotonic() - began)
    return {name: round(statistics.median(values), 2) for name, values in seconds.items()}


def main() -> None:
    """Measures everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", help="a finished run of configs/demo.yaml")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="imagen-ray-startup-"))
    try:
        stages, total = time_smoke(folder)
        model, prompt = options.demo or f"{folder}/first", "a red circle"
        commands = {
            "--help": ["--help"],
            "status of a finished run": ["status", f"{folder}/first"],
            "run of a finished run": ["run", SMOKE, f"run={folder}/first"],
            f"sample, one prompt, {'demo' if options.demo else 'smoke'}": [
                *["sample", model, prompt, "--out", f"{folder}/sample.png"]
            ],
        }
        rows = [{"command": name} | time_command(words, options.turns) for name, words in commands.items()]
        rows.append({"command": "submit of a finished run"} | time_submit(f"{folder}/first", options.turns))
    finally:
        shutil.rmtree(folder)
    groups = time_groups(options.turns)
    by_command = {row["command"]: row for row in rows}
    training = [row["start_up"] for row in stages if row["stage"].startswith(("train.", "encoder", "clip"))]
    actors = [row["start_up"] for row in stages if row["stage"] in ("annotate", "score", "pack", "embed", "sample")]
    write_result(
        "startup",
        [*rows, {"smoke": total}, *stages, groups],
        [
            make_claim("smoke run", total, "s", 60, at_most=True),
            make_claim("start-up of a training stage, the slowest", max(training), "s", 6, at_most=True),
            make_claim("start-up of a later stage of shard workers, the slowest", max(actors), "s", 2, at_most=True),
            make_claim("--help", by_command["--help"]["cpu_s"], "CPU-s", 0.5, at_most=True),
            make_claim("status", by_command["status of a finished run"]["cpu_s"], "CPU-s", 1, at_most=True),
            make_claim("run of a finished run", by_command["run of a finished run"]["wall_s"], "s", 3, at_most=True),
            make_claim("submit of a finished run", rows[-1]["wall_s"], "s", 6, at_most=True),
            make_claim("sample of one prompt", rows[-2]["wall_s"], "s", 8, at_most=True),
            make_claim(
                "training group, Ray Train over ours in kept processes",
                round(groups["Ray Train"] / groups["ours, kept processes"], 1),
                "x",
                5,
            ),
        ],
        ("ray", "torch", "deepspeed"),
    )


if __name__ == "__main__":
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONSOLE_LOGGING", "0")
    main()
